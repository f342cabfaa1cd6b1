"""From a graph to grid tasks: paths, walks, cells, words, layouts, exports."""
