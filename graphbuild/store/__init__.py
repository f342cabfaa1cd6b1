"""The graph on disk: publishing, parts, indexes, heads and snapshots."""
