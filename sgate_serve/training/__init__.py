"""Find gates for a dense model and recover. Importing this stays light; `train` needs torch."""

from sgate_serve.training.train import train
from sgate_serve.training.train_options import TrainOptions, TrainResult

__all__ = ["TrainOptions", "TrainResult", "train"]
