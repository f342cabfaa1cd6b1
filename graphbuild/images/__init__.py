"""Bytes to pixels and back: codecs, nodes, JPEG decoding, rendering, degradations."""
