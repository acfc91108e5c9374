"""The check that a graph can express a model; unsupported features are refused by name."""

from collections.abc import Iterator

from converters.to_onnx.activations import check_activation
from sgate_serve.architecture.rope import PARTIAL
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import EngineError


def check_supported(checkpoint: Checkpoint) -> None:
    """Raise EngineError if a graph cannot express part of this model's forward."""
    spec = checkpoint.spec
    reason = next(_obstacles(spec), None)
    if reason is not None:
        raise EngineError(
            f"{checkpoint.folder}: the ONNX graph does not support {reason} "
            f"(family {spec.family.name}); use --engine torch"
        )
    check_activation(spec.activation)


def _obstacles(spec: ModelSpec) -> Iterator[str]:
    # Some families' classes in transformers do not read the factor, whatever the config says.
    shares = {rope.settings.get(PARTIAL, 1.0) for rope in spec.ropes if rope is not None}
    if shares - {1.0} and not spec.family.has_partial_rotation:
        yield PARTIAL
