"""Serve structurally pruned language models.

Importing this package stays light: no torch, transformers, onnxruntime or vllm. `import
sgate_serve.models` registers the `sgate` model type with transformers.
"""

__version__ = "0.1.0"
