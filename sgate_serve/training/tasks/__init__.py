"""The tasks of `--task`: their data, how they open a model, and their metrics."""
