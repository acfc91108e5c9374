"""GGUF files for llama.cpp, written tensor by tensor with the `gguf` package.

The modules here that import it do so at once: check that it is installed before importing them.
"""

# Relative to the model folder.
GGUF_FILE = "gguf/model.gguf"
