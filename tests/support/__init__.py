"""What tests share: graphs, annotators, tiny checkpoints, servers."""
