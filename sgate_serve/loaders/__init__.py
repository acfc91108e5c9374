"""From a model folder to a loaded engine; graphs that a folder lacks are built and cached."""
