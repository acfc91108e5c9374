"""Reports on models: the content of a folder, its scores on held-out data, and plots."""
