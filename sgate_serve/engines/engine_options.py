"""The options of engines, and their parsing from command-line words."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NoReturn, Self, TypeVar, get_args, get_type_hints

from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.errors import EngineError, did_you_mean
from sgate_serve.onnx_format.auto_precision import AUTO, check_precision_name
from sgate_serve.onnx_format.precision import PRECISIONS
from sgate_serve.options import flag_of, option, whole

CPU, CUDA = DEVICES = ("cpu", "cuda")
CACHE_DTYPES = (AUTO, INT8)
DEFAULT_DRAFT_TOKENS = 3
GRAPH_PRECISIONS = f"{', '.join(PRECISIONS)} or {AUTO}"
PRECISION_HELP = f"{GRAPH_PRECISIONS}: precision of the graph (default: the folder's own)"


@dataclass(frozen=True)
class PoolingOptions:
    """Sizes of an engine for pooling models; those that are None are chosen and logged."""

    max_model_len: int | None = option(None, "longest text, in tokens")
    threads: int | None = option(None, "CPU threads of the engine")
    batch_tokens: int | None = option(None, "tokens of all texts in one batch")
    precision: str | None = option(None, PRECISION_HELP)

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_precision(self.precision)


@dataclass(frozen=True)
class SlotOptions:
    """Sizes of a slot engine; those that are None are chosen from machine and model and logged."""

    slots: int | None = option(None, "requests that run at the same time")
    max_model_len: int | None = option(None, "longest prompt and completion together, in tokens")
    threads: int | None = option(None, "CPU threads of the engine")
    prefill_chunk: int | None = option(None, "prompt tokens processed in one step")
    draft: str | None = option(
        None, "model folder or hub id, such as the pruned child, that drafts what the model checks"
    )
    draft_tokens: int | None = option(
        None, f"tokens that the draft model drafts at a time (default: {DEFAULT_DRAFT_TOKENS})"
    )

    def __post_init__(self) -> None:
        _check_sizes(self)
        self._check_draft()

    def _check_draft(self) -> None:
        for each in fields(self):
            is_about = each.name.startswith("draft_")
            if is_about and getattr(self, each.name) is not None and self.draft is None:
                raise EngineError(f"{flag_of(each.name)} has no effect without {flag_of('draft')}")

    def without_draft(self) -> Self:
        """Return the same options for a model that nothing drafts for."""
        names = (each.name for each in fields(self) if each.name.startswith("draft"))
        return replace(self, **dict.fromkeys(names))


@dataclass(frozen=True)
class OnnxOptions(SlotOptions):
    """The options of the onnx engine: those of a slot engine and its own."""

    kv_cache_mib: int | None = option(None, "memory for keys, values and recurrent states, in MiB")
    kv_cache_dtype: str = option(
        AUTO, "auto or int8: keys and values as the graph's floats, or in a quarter of fp32's bytes"
    )
    device: str = option(CPU, f"{' or '.join(DEVICES)}; cuda is untested")
    precision: str | None = option(None, PRECISION_HELP)
    batch_invariant: bool = option(
        False, "int4: a lone stream's tokens do not depend on whether others run beside it; slower"
    )
    draft_precision: str | None = option(
        None, f"{GRAPH_PRECISIONS}: precision of the draft model (default: as --precision)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_precision(self.precision)
        _check_precision(self.draft_precision)
        if self.device not in DEVICES:
            raise EngineError(
                f"engine option device is {self.device!r}; give {' or '.join(DEVICES)}"
                f"{did_you_mean(self.device, DEVICES)}"
            )
        self._check_cache_dtype()

    def _check_cache_dtype(self) -> None:
        found = self.kv_cache_dtype
        if found not in CACHE_DTYPES:
            raise EngineError(
                f"engine option kv_cache_dtype is {found!r}; give {' or '.join(CACHE_DTYPES)}"
                f"{did_you_mean(found, CACHE_DTYPES)}"
            )
        if found == INT8 and self.device != "cpu":
            raise EngineError(
                f"{flag_of('kv_cache_dtype')} {INT8} needs --device cpu, found {self.device}; "
                "leave one out"
            )

    @classmethod
    def of(cls, options: SlotOptions | None) -> Self:
        """Return slot options as options of the onnx engine, with defaults for its own."""
        return cls(**vars(options or SlotOptions()))


Options = TypeVar("Options", bound=PoolingOptions | SlotOptions)


def read_options(options: type[Options], name: str, arguments: Sequence[str]) -> Options:
    """Parse command-line words into an options dataclass; raise EngineError for unknown ones."""
    parser = _Parser(prog=f"engine {name}", add_help=False, allow_abbrev=False)
    hints = get_type_hints(options)
    for each in fields(options):
        flag = flag_of(each.name)
        if hints[each.name] is bool:
            parser.add_argument(flag, action="store_true")
            continue
        is_text = str in (hints[each.name], *get_args(hints[each.name]))
        reader = str if is_text else whole
        parser.add_argument(flag, dest=each.name, type=reader, default=each.default)
    return options(**vars(parser.parse_args(arguments)))


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises EngineError instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        known = {
            action.option_strings[0]: "" if action.nargs == 0 else " VALUE"
            for action in self._actions
        }
        _, is_unknown, words = message.partition("unrecognized arguments: ")
        flag = words.split()[0].partition("=")[0] if is_unknown else ""
        hint = did_you_mean(flag, known)
        raise EngineError(
            f"{self.prog}: {message}; its options: {', '.join(map(''.join, known.items()))}{hint}"
        )


def _check_sizes(options: PoolingOptions | SlotOptions) -> None:
    for name, value in vars(options).items():
        if isinstance(value, int) and value < 1 and not isinstance(value, bool):
            raise EngineError(f"engine option {name} must be at least 1, found {value}")


def _check_precision(name: str | None) -> None:
    if name is not None:
        check_precision_name(name)
