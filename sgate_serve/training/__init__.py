"""Find gates for a dense model and recover. Importing this stays light; `train` needs torch."""

from sgate_serve.training.options import TrainOptions, TrainResult
from sgate_serve.training.run import train

__all__ = ["TrainOptions", "TrainResult", "train"]
