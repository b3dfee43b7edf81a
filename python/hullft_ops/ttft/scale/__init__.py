"""Many workers: indexing, searching and evaluating with Ray."""
