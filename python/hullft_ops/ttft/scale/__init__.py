"""Many workers, with Ray: indexing, searching, evaluating, experts. Imports all of ``ttft``."""
