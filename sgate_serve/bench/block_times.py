"""Measures how long a model's blocks take at several widths, on this machine and one engine.

Models of random weights, in each of which all blocks of one kind have one width, run interleaved as
in a comparison. What a width saves over the dense model is shared out among the layers. So every
time comes from a model that reads about as many bytes as a real one: a few narrow layers alone
would fit a CPU cache that the model does not fit, and seem faster than they are in it. All layers
are measured, up to as many as have `LARGEST_STACK` bytes, which is more than caches hold; a stack
of half of these then tells what each of the others adds.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from sgate_serve.architecture.family import ATTENTION, BLOCKS, CAUSAL_LM
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.bench.compare import check_fits, loaded
from sgate_serve.bench.comparison import DENSE
from sgate_serve.bench.narrow_models import Stack, write_narrow
from sgate_serve.bench.rounds import Times, measure_rounds
from sgate_serve.bench.workload import (
    AnyWorkload,
    PoolingWorkload,
    Workload,
    is_decode,
    phases,
    steps_of,
)
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.table import ONNX
from sgate_serve.environment import hardware
from sgate_serve.loaders.timing import write_timed_graph
from sgate_serve.onnx_format.precision import Precision
from sgate_serve.plan.block_times import (
    DECODE,
    ENCODE,
    PREFILL,
    BlockTimes,
    PhaseTimes,
    WidthTimes,
    width_of,
)
from sgate_serve.progress import activity, counted

LARGEST_STACK = 2**29  # bytes
# The measured shares of the dense width; 0 stands for a single unit or KV group.
SHARES = (0.0, 0.25, 0.5, 0.75)
# Up to this many groups or units, the shares are timed as they are.
FEW = 16
HALF = "half the layers"
# Many rounds of short runs, so that each model has some that nothing disturbed.
ROUNDS = {DECODE: 21, PREFILL: 7, ENCODE: 7}
DECODE_STEPS, CONTEXT_TOKENS, PREFILL_TOKENS = 8, 8, 128
ENCODED_TEXTS, ENCODED_TOKENS = 8, 128
# Noise must not make all that is not in a block seem to take no time.
LEAST_OTHER = 0.01


def measure_block_times(model: Checkpoint, engine: str, precision: Precision) -> BlockTimes:
    """Time models like `model` at several widths of their blocks, in every phase that it has.

    Raises EngineError if the engine cannot run them. The layers of `model` must be alike.
    """
    stacks = stacks_of(model.spec, precision)
    workload = _workload(model.spec, engine, precision)
    check_fits(model, workload)
    measures = {_phase_of(name): measure for name, measure in phases(workload).items()}
    with (
        _written(model, stacks, engine, precision) as models,
        loaded(models, engine, workload) as timed,
    ):
        times: Times = {}
        for phase, measure in measures.items():
            shown = f"timing blocks of several widths, {phase}"
            times |= measure_rounds({phase: measure}, timed, ROUNDS[phase], name_shown=shown)
    machine = hardware()
    return BlockTimes(
        engine=engine,
        precision=precision.name,
        machine=f"{machine['cpu']}, {machine['cpus']} CPUs",
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        phases={
            phase: phase_times(model.spec, stacks, seconds_per_run(own, steps_of(workload, phase)))
            for phase, own in times.items()
        },
    )


def stacks_of(spec: ModelSpec, precision: Precision) -> dict[str, Stack]:
    """Return the stacks to time by name: the dense one, and one for each kind and width."""
    dense, total = spec.layers[0], len(spec.layers)
    fitting = int(LARGEST_STACK / (spec.layer_weights(0) * precision.bytes_inside))
    num_layers = min(total, max(2, fitting))
    stacks = {DENSE: Stack(dense, num_layers)}
    for kind in BLOCKS:
        for width in widths_of(width_of(dense, kind)):
            stacks[f"{kind} {width}"] = Stack(narrowed(dense, kind, width), num_layers)
    if num_layers < total:
        stacks[HALF] = Stack(dense, num_layers // 2)
    return stacks


def widths_of(dense: int) -> list[int]:
    """Return the widths to time below the dense one.

    Kernels may be faster at round widths than at those that a mask leaves, so these are not round.
    """
    less = 1 if dense > FEW else 0
    widths = {max(1, round(share * dense) - less) for share in SHARES}
    return sorted(width for width in widths if width < dense)


def narrowed(dense: LayerShape, kind: str, width: int) -> LayerShape:
    """Return the shape with another number of KV groups or MLP units."""
    if kind == ATTENTION:
        return replace(dense, num_kv_heads=width, num_heads=width * dense.queries_per_kv)
    return replace(dense, mlp_units=width)


def seconds_per_run(times: Mapping[str, list[float]], runs: int) -> dict[str, float]:
    """Return the seconds of each model, from measurements of `runs` runs each.

    The fastest one counts, which other programs disturbed least: a few that all took longer on a
    busy machine would seem to be time that no width saves.
    """
    return {name: min(values) / runs for name, values in times.items()}


def phase_times(
    spec: ModelSpec, stacks: Mapping[str, Stack], seconds: Mapping[str, float]
) -> PhaseTimes:
    """Share out among the layers what each width saves, and leave the rest to everything else."""
    num_layers, dense = stacks[DENSE].num_layers, seconds[DENSE]
    blocks = {}
    for kind in BLOCKS:
        names = [DENSE, *(name for name in stacks if name.startswith(f"{kind} "))]
        blocks[kind] = WidthTimes.of(
            {width_of(stacks[name].shape, kind): seconds[name] / num_layers for name in names}
        )
    total = dense
    if HALF in stacks:
        more = num_layers - stacks[HALF].num_layers
        total += (len(spec.layers) - num_layers) * max(dense - seconds[HALF], 0) / more
    saved = sum(blocks[kind].at(width_of(spec.layers[0], kind)) for kind in BLOCKS)
    return PhaseTimes(max(total - len(spec.layers) * saved, LEAST_OTHER * total), blocks)


@contextmanager
def _written(
    model: Checkpoint, stacks: Mapping[str, Stack], engine: str, precision: Precision
) -> Iterator[dict[str, Checkpoint]]:
    """Write the model of each stack to a folder that is removed in the end."""
    with TemporaryDirectory(prefix="sgate-times-") as root:
        models = {}
        with activity("writing models to time", is_brief=True):
            for name, stack in counted(stacks.items(), "model", len(stacks)):
                models[name] = write_narrow(model, stack, Path(root) / name)
                if engine == ONNX:
                    write_timed_graph(models[name], precision)
        yield models


def _workload(spec: ModelSpec, engine: str, precision: Precision) -> AnyWorkload:
    arguments = ("--precision", precision.name) if engine == ONNX else ()
    longest = spec.max_positions
    if spec.task != CAUSAL_LM:
        tokens = min(ENCODED_TOKENS, longest)
        return PoolingWorkload(
            prefill_tokens=tokens, batches=(ENCODED_TEXTS,), engine_arguments=arguments
        )
    return Workload(
        decode_steps=min(DECODE_STEPS, longest // 2),
        context_tokens=min(CONTEXT_TOKENS, longest // 2),
        prefill_tokens=min(PREFILL_TOKENS, longest),
        batches=(1,),
        engine_arguments=arguments,
    )


def _phase_of(name: str) -> str:
    """Return our name of a workload's phase."""
    return PREFILL if name == PREFILL else DECODE if is_decode(name) else ENCODE
