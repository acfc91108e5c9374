"""Where the time of each phase goes, by kind of work and by layer, as the engine's profiler says.

Profilers slow a model down, so speedups come from the comparison itself, and shares from here: each
part's shortest time over a few runs, which other programs disturbed least.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from sgate_serve.bench.compare import load_for
from sgate_serve.bench.rounds import order_of
from sgate_serve.bench.workload import AnyWorkload, Workload, phases, steps_of
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.table import ENGINES, import_object
from sgate_serve.engines.work import KINDS, Piece
from sgate_serve.progress import activity, counted

# Time outside of all pieces: the calls between them, inputs and outputs; on vLLM the scheduler too.
HOST = "host"
ALL_KINDS = (*KINDS, HOST)
# Rounds of each phase, forwards and backwards, of which the first is not counted; decode steps.
ROUNDS, STEPS = 4, 8


@dataclass(frozen=True)
class Attribution:
    """The seconds of one phase of one model: of a decode step, a prefill or an encoded batch.

    `kinds` add up to `seconds`; `layers` has for each layer the seconds of its kinds.
    """

    seconds: float
    kinds: dict[str, float]
    layers: list[dict[str, float]]

    @classmethod
    def of(cls, pieces: Sequence[Piece], seconds: float, num_layers: int) -> "Attribution":
        """Sum up the pieces of a phase that took `seconds` in all."""
        kinds: defaultdict[str, float] = defaultdict(float)
        layers: list[defaultdict[str, float]] = [defaultdict(float) for _ in range(num_layers)]
        for piece in pieces:
            kinds[piece.work.kind] += piece.seconds
            if piece.work.layer is not None:
                layers[piece.work.layer][piece.work.kind] += piece.seconds
        kinds[HOST] = seconds - sum(kinds.values())
        ordered = {kind: kinds[kind] for kind in ALL_KINDS if kinds[kind]}
        return cls(seconds, ordered, [dict(layer) for layer in layers])

    @classmethod
    def least(cls, runs: Sequence["Attribution"]) -> "Attribution":
        """Return the shortest time of each part over runs, which other programs disturbed least."""
        kinds = {kind: min(run.kinds.get(kind, 0.0) for run in runs) for kind in runs[0].kinds}
        layers = [
            {kind: min(layer.get(kind, 0.0) for layer in same) for kind in same[0]}
            for same in zip(*(run.layers for run in runs), strict=True)
        ]
        return cls(sum(kinds.values()), kinds, layers)

    def per(self, count: int) -> "Attribution":
        """Return the seconds of one of `count` equal parts."""
        return Attribution(
            self.seconds / count,
            {kind: seconds / count for kind, seconds in self.kinds.items()},
            [{kind: s / count for kind, s in layer.items()} for layer in self.layers],
        )

    def to_json(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "kinds": self.kinds, "layers": self.layers}


class _Run(NamedTuple):
    """A run of a phase: how long it took, from when until when, on the clock of the pieces."""

    seconds: float
    started_ns: int
    ended_ns: int

    def pieces(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Return those of a model's pieces, in order, that began in this run."""
        ends = (self.started_ns, self.ended_ns)
        first, last = (bisect_left(pieces, ns, key=lambda piece: piece.start_ns) for ns in ends)
        return pieces[first:last]


def attribute(
    models: Mapping[str, Checkpoint], engine: str, workload: AnyWorkload
) -> dict[str, dict[str, Attribution]]:
    """Run every phase with the engine's profiler; return phase → model → its time."""
    row = ENGINES[engine]
    assert row.profiled is not None, "check_explainable has not been called"
    profiled = import_object(row.profiled)
    workload = _shortened(workload, row.profiled_with)
    measures = phases(workload)
    runs: dict[tuple[str, str], list[_Run]] = {pair: [] for pair in product(measures, models)}
    with ExitStack() as stack:
        opened = {
            name: stack.enter_context(
                profiled(lambda model=model: load_for(engine, model, workload), model.spec)
            )
            for name, model in models.items()
        }
        for timed, _ in opened.values():
            stack.callback(timed.close)
        order = list(product(range(ROUNDS), measures.items(), order_of(models)))
        with activity("profiling", is_brief=True):
            for number, (phase, measure), name in counted(order, "run"):
                timed = opened[name][0]
                seconds = measure(timed)
                if number:
                    runs[phase, name].append(_Run(seconds, *timed.watch.span_ns))
        pieces = {name: profiler.take() for name, (_, profiler) in opened.items()}
    found: dict[str, dict[str, Attribution]] = {phase: {} for phase in measures}
    for (phase, name), own in runs.items():
        # A profiler keeps only so many pieces, and a run without all of them says nothing.
        cut = [(run.seconds, run.pieces(pieces[name])) for run in own]
        most = max(len(inside) for _, inside in cut)
        num_layers = len(models[name].spec.layers)
        whole = [Attribution.of(p, s, num_layers) for s, p in cut if len(p) == most]
        found[phase][name] = Attribution.least(whole).per(steps_of(workload, phase))
    return found


def _shortened(workload: AnyWorkload, words: tuple[str, ...]) -> AnyWorkload:
    """Return the workload with few decode steps, as profilers keep every piece of every step."""
    arguments = (*workload.engine_arguments, *words)
    if isinstance(workload, Workload):
        steps = min(workload.decode_steps, STEPS)
        return replace(workload, engine_arguments=arguments, decode_steps=steps)
    return replace(workload, engine_arguments=arguments)
