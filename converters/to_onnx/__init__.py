"""Write the fp32 ONNX graph of a checkpoint, for ONNX Runtime's contrib operators."""

from converters.to_onnx.writer import build_graph, write_onnx

__all__ = ["build_graph", "write_onnx"]
