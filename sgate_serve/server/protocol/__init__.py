"""The wire format: request bodies as strict models, and the JSON of responses."""
