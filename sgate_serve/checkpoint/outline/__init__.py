"""What the headers and the config of a checkpoint of any family say, and where they disagree."""
