"""What is said about a model: what a folder holds, how well it scores, plots."""
