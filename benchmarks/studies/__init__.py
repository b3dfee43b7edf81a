"""Scripts behind the pages in docs/results: corpora, and tables and pictures of an evaluation."""
