"""Write the fp32 ONNX decoder graph of a checkpoint, for ONNX Runtime's contrib operators."""

from converters.to_onnx.writer import write_onnx

__all__ = ["write_onnx"]
