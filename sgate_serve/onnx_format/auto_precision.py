"""`--precision auto`: whether a graph is int4 or int8 on a machine, and why.

The choice is pure: model and machine are given as data. Graphs, folders and records hold what was
chosen, never the word `auto`. docs/speed.md has the measurements behind the table.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.environment import cpu_flags, memory_bytes
from sgate_serve.errors import EngineError, did_you_mean
from sgate_serve.onnx_format.precision import INT4, PRECISIONS

logger = logging.getLogger(__name__)

AUTO = "auto"
# The rest is for the KV cache, which takes a quarter, and for whatever else runs.
WEIGHTS_SHARE = 0.5


@dataclass(frozen=True)
class Machine:
    """What decides of a machine: its vector and matrix instructions, and its memory."""

    flags: frozenset[str]
    memory_bytes: int

    @classmethod
    def here(cls) -> "Machine":
        return cls(frozenset(cpu_flags()), memory_bytes())


@dataclass(frozen=True)
class Choice:
    """A precision, and the reason for it."""

    precision: str
    reason: str


# Instructions, the first that a CPU has decides → what is chosen with them.
BY_INSTRUCTIONS: Mapping[str, Choice] = MappingProxyType(
    {
        "amx_int8": Choice(
            INT8, "this CPU has AMX, with which int8 reads prompts and decodes batches faster"
        ),
        "avx512_vnni": Choice(
            INT4,
            "this CPU has AVX-512 VNNI without AMX, with which int4 decodes one stream faster",
        ),
        "avx_vnni": Choice(
            INT4, "this CPU has AVX-VNNI; nothing was measured with that, and int4 reads less"
        ),
    }
)
OTHERWISE = Choice(
    INT4, "this CPU is not known to have VNNI or AMX; nothing was measured so, and int4 reads less"
)


def choose(
    spec: ModelSpec, machine: Machine, *, is_int8: bool = False, without_int8: str | None = None
) -> Choice:
    """Choose the precision of a model's graph.

    `is_int8` is true for a folder whose weights are int8 already; `without_int8` is the reason why
    int8 is not to be had, if there is one.
    """
    if spec.is_encoder:
        return Choice(INT8, "graphs of encoders are not made in int4")
    if without_int8 is not None:
        return Choice(INT4, without_int8)
    size = spec.num_parameters * PRECISIONS[INT8].bytes_inside
    if size > WEIGHTS_SHARE * machine.memory_bytes:
        share = f"{WEIGHTS_SHARE:.0%} of the {machine.memory_bytes / 2**30:.3g} GiB here"
        return Choice(INT4, f"int8 weights take {size / 2**30:.3g} GiB, more than {share}")
    if is_int8:
        return Choice(INT8, "the folder's weights are int8")
    found = (own for flag, own in BY_INSTRUCTIONS.items() if flag in machine.flags)
    return next(found, OTHERWISE)


def chosen_precision(
    spec: ModelSpec, *, is_int8: bool = False, without_int8: str | None = None
) -> str:
    """Choose for this machine, log the choice with its reason, and return the precision's name."""
    choice = choose(spec, Machine.here(), is_int8=is_int8, without_int8=without_int8)
    logger.info("--precision %s: %s, as %s", AUTO, choice.precision, choice.reason)
    return choice.precision


def check_precision_name(name: str) -> None:
    """Raise EngineError unless a graph can be asked for by this name."""
    known = (*PRECISIONS, AUTO)
    if name not in known:
        raise EngineError(
            f"precision {name!r}: ONNX graphs are {', '.join(PRECISIONS)}, and {AUTO} is int4 or "
            f"int8 by the machine{did_you_mean(name, known)}"
        )
