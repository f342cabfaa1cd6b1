"""A graph to look at: the local web page, and the report in one file."""
