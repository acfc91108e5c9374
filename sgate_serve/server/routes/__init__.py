"""The endpoints, and the streaming of their responses."""
