"""The contract between the converter that writes an ONNX graph and the engine that runs it."""
