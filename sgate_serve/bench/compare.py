"""`sgate bench compare`: dense and pruned models interleaved in one run.

Each round times every phase in the order A B C A' A' C B A: A is the dense model, B the pruned one,
C any further models, A' the dense model loaded a second time.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from sgate_serve.bench.comparison import DENSE, DENSE_AGAIN, PRUNED, Comparison, summarise
from sgate_serve.bench.ideal import Ideal, ideal_speedup
from sgate_serve.bench.rounds import Times, measure_rounds, num_whole_rounds, whole_rounds
from sgate_serve.bench.workload import (
    AnyWorkload,
    PoolingWorkload,
    SizedWorkload,
    batch_of,
    is_decode,
    phases,
    tokens_per_run,
)
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.timed import TimedModel
from sgate_serve.errors import EngineError
from sgate_serve.loaders.serving import check_generative, check_pooling_model
from sgate_serve.loaders.timing import load_timed, load_timed_pooling
from sgate_serve.onnx_format.precision import Precision

OWN_NAMES = (DENSE, PRUNED, DENSE_AGAIN)
NOTHING: Mapping[str, Checkpoint] = MappingProxyType({})


@dataclass
class ComparisonRun:
    """The measurement of a comparison, whose `times` grow, so that an interrupted one has a result.

    Each model in `beside` gets its own speedup over dense, under its name. Raises SgateError for a
    name that is already taken, and for a model that is too short for the workload or of another
    kind.
    """

    dense: Checkpoint
    pruned: Checkpoint
    engine: str
    workload: AnyWorkload
    beside: Mapping[str, Checkpoint] = field(default_factory=dict)
    times: Times = field(default_factory=dict)
    precisions: dict[str, Precision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = next((name for name in self.beside if name in OWN_NAMES), None)
        if taken is not None:
            raise EngineError(f"--beside {taken}: the comparison already has a model of that name")
        for model in self.models.values():
            check_fits(model, self.workload)

    @property
    def models(self) -> Mapping[str, Checkpoint]:
        return {DENSE: self.dense, PRUNED: self.pruned, **self.beside}

    @property
    def rounds(self) -> int:
        """The whole rounds that were measured."""
        return num_whole_rounds(self.times)

    def measure(self) -> None:
        """Load dense, pruned, those beside and dense again; measure every phase interleaved.

        Raises SgateError if a model cannot be loaded.
        """
        models, workload = {**self.models, DENSE_AGAIN: self.dense}, self.workload
        with loaded(models, self.engine, workload) as timed:
            self.precisions = {name: timed[name].precision for name in models}
            measure_rounds(phases(workload), timed, workload.rounds, self.times)

    def result(self, *, is_interrupted: bool = False) -> Comparison:
        """Return the result of the whole rounds, of which there must be one."""
        workload, results = self.workload, {}
        for phase, seconds in whole_rounds(self.times).items():
            ideals = self._ideals(batch_of(phase))
            expected = {
                name: ideal.decode if is_decode(phase) else ideal.prefill
                for name, ideal in ideals.items()
            }
            num_tokens = tokens_per_run(workload, phase)
            results[phase] = summarise(seconds, expected, num_tokens, workload.seed)
        return Comparison(
            engine=self.engine,
            dense=str(self.dense.folder),
            pruned=str(self.pruned.folder),
            beside={name: str(model.folder) for name, model in self.beside.items()},
            precisions={name: self.precisions[name].name for name in self.models},
            workload=workload,
            results=results,
            rounds=self.rounds,
            is_interrupted=is_interrupted,
        )

    def _ideals(self, batch: int) -> Mapping[str, Ideal]:
        """Return the ideal speedups of all models but the dense one, for steps of `batch`."""
        num_tokens, precisions = self.workload.prefill_tokens, self.precisions
        return {
            name: ideal_speedup(
                self.dense.spec,
                model.spec,
                num_tokens,
                (precisions[DENSE], precisions[name]),
                batch,
            )
            for name, model in self.models.items()
            if name != DENSE
        }


def compare(
    dense: Checkpoint,
    pruned: Checkpoint,
    engine: str,
    workload: AnyWorkload,
    beside: Mapping[str, Checkpoint] = NOTHING,
) -> Comparison:
    """Measure a comparison and return its result; raises what ComparisonRun does."""
    run = ComparisonRun(dense, pruned, engine, workload, beside)
    run.measure()
    return run.result()


def check_fits(model: Checkpoint, workload: SizedWorkload) -> None:
    """Raise EngineError for a model of another kind than the workload's, or too short for it."""
    check = check_pooling_model if isinstance(workload, PoolingWorkload) else check_generative
    check(model)
    if model.spec.max_positions < workload.model_len:
        raise EngineError(
            f"{model.folder} holds {model.spec.max_positions} positions, the workload needs "
            f"{workload.model_len}; lower {workload.length_flags}"
        )


@contextmanager
def loaded(
    models: Mapping[str, Checkpoint], engine: str, workload: SizedWorkload
) -> Iterator[Mapping[str, TimedModel]]:
    """Load the models in order; close all of them when the context ends, also on an error."""
    with ExitStack() as stack:
        timed: dict[str, TimedModel] = {}
        for name, model in models.items():
            timed[name] = load_for(engine, model, workload)
            stack.callback(timed[name].close)
            if timed[name].max_model_len < workload.model_len:
                raise EngineError(
                    f"{model.folder}: engine {engine} was loaded with {timed[name].max_model_len} "
                    f"positions, the workload needs {workload.model_len}; change the arguments "
                    "after `--`"
                )
        yield timed


def load_for(engine: str, model: Checkpoint, workload: SizedWorkload) -> TimedModel:
    """Load one model with the sizes of a workload; the caller closes it."""
    load = load_timed_pooling if isinstance(workload, PoolingWorkload) else load_timed
    return load(engine, model, workload.sizes, workload.engine_arguments)
