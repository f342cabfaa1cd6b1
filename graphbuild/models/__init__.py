"""Networks and their weights. Knows no annotator."""
