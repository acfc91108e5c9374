"""Runs validated requests on the engine: prompts to token ids, token events to text."""
