"""Which models the graphs can express; every other is refused by name."""

from collections.abc import Iterator

from converters.to_onnx.activations import check_activation
from converters.to_onnx.config import ForwardConfig
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import EngineError


def check_supported(checkpoint: Checkpoint) -> None:
    """Raise EngineError unless the graph has all that this model's forward needs."""
    spec = checkpoint.spec
    reason = next(_obstacles(checkpoint), None)
    if reason is not None:
        raise EngineError(
            f"{checkpoint.folder}: the ONNX graph does not support {reason} "
            f"(family {spec.family.name}); use --engine torch"
        )
    check_activation(spec.activation)


def _obstacles(checkpoint: Checkpoint) -> Iterator[str]:
    spec, config = checkpoint.spec, ForwardConfig.of(checkpoint)
    # transformers reads the factor in some families' classes only, whatever the config says.
    shares = {config.rotated_share(index) for index in range(len(spec.layers))}
    if shares != {1.0} and not spec.family.has_partial_rotation:
        yield "partial_rotary_factor"
