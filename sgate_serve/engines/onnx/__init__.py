"""The embedded engine: ONNX Runtime on one machine, without torch or transformers."""
