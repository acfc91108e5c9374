"""Training and evaluation data: files and datasets, documents, labelled examples, metrics."""
