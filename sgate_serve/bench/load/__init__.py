"""Load on servers with an OpenAI-compatible API, measured from the client's side."""
