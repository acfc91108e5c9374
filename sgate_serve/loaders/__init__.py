"""From a model folder to a loaded model; graphs that a folder lacks are built and cached."""
