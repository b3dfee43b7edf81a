"""Scripts behind the pages in docs/results: corpora, and a picture of an evaluation."""
