"""Data to train and evaluate on: files and datasets, documents, labelled examples, metrics."""
