"""The same work in worker processes on Ray: embedding a corpus, measuring settings."""
