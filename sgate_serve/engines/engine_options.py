"""The sizes of engines as their command line spells them."""

from dataclasses import dataclass
from typing import Self

from sgate_serve.errors import EngineError
from sgate_serve.onnx_format.precision import PRECISIONS, precision_named
from sgate_serve.options import option

DEVICES = ("cpu", "cuda")
PRECISION_HELP = f"{', '.join(PRECISIONS)}: what the graph is in (default: as it is in the folder)"


@dataclass(frozen=True)
class EncoderOptions:
    """Sizes of an engine that reads texts; None means chosen, and logged."""

    max_model_len: int | None = option(None, "longest text, in tokens")
    threads: int | None = option(None, "CPU threads of the engine")
    batch_tokens: int | None = option(None, "tokens of all texts that are read at once")
    precision: str | None = option(None, PRECISION_HELP)

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_precision(self.precision)


@dataclass(frozen=True)
class SlotOptions:
    """Sizes of a slot engine; None means chosen from the machine and the model, and logged."""

    slots: int | None = option(None, "requests that run at the same time")
    max_model_len: int | None = option(None, "longest prompt and completion together, in tokens")
    threads: int | None = option(None, "CPU threads of the engine")
    prefill_chunk: int | None = option(None, "prompt tokens fed in one step")

    def __post_init__(self) -> None:
        _check_sizes(self)


@dataclass(frozen=True)
class OnnxOptions(SlotOptions):
    """What the onnx engine can be told besides."""

    kv_cache_mib: int | None = option(None, "memory for keys and values, in MiB")
    device: str = option("cpu", f"{' or '.join(DEVICES)}; cuda is untested")
    precision: str | None = option(None, PRECISION_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_precision(self.precision)
        if self.device not in DEVICES:
            raise EngineError(
                f"engine option device is {self.device!r}; give {' or '.join(DEVICES)}"
            )

    @classmethod
    def of(cls, options: SlotOptions | None) -> Self:
        """Return the options as the onnx engine's own."""
        return cls(**vars(options or SlotOptions()))


def _check_sizes(options: EncoderOptions | SlotOptions) -> None:
    for name, value in vars(options).items():
        if isinstance(value, int) and value < 1:
            raise EngineError(f"engine option {name} must be at least 1, found {value}")


def _check_precision(name: str | None) -> None:
    if name is not None:
        precision_named(name)
