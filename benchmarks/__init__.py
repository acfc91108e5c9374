"""Scripts that choose workloads, their results as JSON, and the tables made from those."""
