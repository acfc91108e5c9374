"""Write the ONNX graph of a checkpoint, with ONNX Runtime's contrib operators."""

from converters.to_onnx.writer import build_graph, check_layers, write_onnx

__all__ = ["build_graph", "check_layers", "write_onnx"]
