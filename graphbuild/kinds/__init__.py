"""Kinds of node, and the phrases that stand for them in an instruction."""
