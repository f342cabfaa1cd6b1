"""A graph, or a part of it, in layouts that other tools read without graphbuild."""
