"""Train gates on a frozen base model. Importing this stays light; calling `train` needs torch."""

from sgate_serve.training.options import TrainOptions, TrainResult
from sgate_serve.training.run import train

__all__ = ["TrainOptions", "TrainResult", "train"]
