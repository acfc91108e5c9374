"""The record of `sgate bench compare --explain`: attribution, sizes, the machine, sentences."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.bench.compare import ComparisonRun
from sgate_serve.bench.comparison import DENSE, PRUNED, Comparison
from sgate_serve.bench.explain.attribution import attribute
from sgate_serve.bench.explain.sentences import sentences
from sgate_serve.bench.ideal import prefill_flops, weight_bytes, weight_counts
from sgate_serve.bench.workload import (
    AnyWorkload,
    PoolingWorkload,
    batch_of,
    is_decode,
    steps_of,
    tokens_per_run,
)
from sgate_serve.engines.machine import CPU, MachineRates
from sgate_serve.engines.table import ENGINES, import_object
from sgate_serve.environment import cache_bytes
from sgate_serve.errors import EngineError
from sgate_serve.loaders.timing import given_options
from sgate_serve.onnx_format.precision import Precision
from sgate_serve.progress import activity


def check_explainable(engine: str, workload: AnyWorkload) -> None:
    """Raise EngineError for an engine that cannot say what the parts of a model take."""
    if ENGINES[engine].profiled is None:
        able = ", ".join(name for name, row in ENGINES.items() if row.profiled is not None)
        raise EngineError(f"engine {engine} cannot be explained; use --engine {able}")
    device = getattr(_given(engine, workload), "device", CPU)
    if device != CPU:
        raise EngineError(
            f"engine {engine}: what the parts of a model take on {device} is not known; explain a "
            f"comparison on {CPU}, or leave out --explain and --report"
        )


def explain(run: ComparisonRun, result: Comparison) -> dict[str, Any]:
    """Return where the time of dense and pruned goes, and sentences that follow from it.

    `run` has been measured, with this result.
    """
    models, workload = {DENSE: run.dense, PRUNED: run.pruned}, run.workload
    phases = attribute(models, run.engine, workload)
    rates = _machine_rates(run)
    speedups = {phase: one.speedups[PRUNED] for phase, one in result.results.items()}
    held = {name: Held(model.spec, run.precisions[name]) for name, model in models.items()}
    record: dict[str, Any] = {
        "phases": {
            phase: {name: one.to_json() for name, one in by_model.items()}
            for phase, by_model in phases.items()
        },
        "measured": {phase: one.measured.median for phase, one in speedups.items()},
        "ideal": {phase: one.ideal for phase, one in speedups.items()},
        "models": {name: one.to_json() for name, one in held.items()},
        "machine": {
            "device": rates.device,
            "read_bytes_per_second": rates.read_bytes,
            "copied_bytes_per_second": rates.copied_bytes,
            "operations_per_second": dict(rates.products),
            "cache_bytes": cache_bytes() if rates.device == CPU else None,
        },
        "achieved": {
            phase: {
                name: one.achieved(phase, _measured(run, phase, name), workload, rates)
                for name, one in held.items()
            }
            for phase in phases
        },
    }
    return record | {"sentences": sentences(record)}


@dataclass(frozen=True)
class Held:
    """A model in the precision in which an engine holds it."""

    spec: ModelSpec
    precision: Precision

    def to_json(self) -> dict[str, Any]:
        return {
            "precision": self.precision.name,
            "weights": weight_counts(self.spec),
            "weight_bytes": weight_bytes(self.spec, self.precision),
            "kv_groups": [layer.num_kv_heads for layer in self.spec.layers],
            "mlp_units": [layer.mlp_units for layer in self.spec.layers],
            "mlp_widths": [width for layer in self.spec.layers for width in layer.mlp_widths],
        }

    def achieved(
        self, phase: str, seconds: float, workload: AnyWorkload, rates: MachineRates
    ) -> dict[str, Any]:
        """Return what a phase that takes so long reads or computes a second.

        `share` is that of the machine's own rate, None if that was not measured.
        """
        if is_decode(phase):
            read = weight_bytes(self.spec, self.precision, batch_of(phase))
            speed = sum(read.values()) / seconds
            return {"bytes_per_second": speed, "share": speed / rates.read_bytes}
        texts = tokens_per_run(workload, phase) // workload.prefill_tokens
        speed = texts * prefill_flops(self.spec, workload.prefill_tokens) / seconds
        numbers = multiplied_in(self.precision, rates.products)
        able = rates.products.get(numbers)
        share = None if able is None else speed / able
        return {"operations_per_second": speed, "share": share, "numbers": numbers}


def multiplied_in(precision: Precision, products: Mapping[str, float]) -> str:
    """Return the type in which an engine multiplies that has these `products`.

    An engine without integer products computes int8 weights in the type of the activations.
    """
    if precision.bits <= 8 and "int8" in products:
        return "int8"
    return "bf16" if precision.outer_bits == 16 else "fp32"


def _machine_rates(run: ComparisonRun) -> MachineRates:
    """Measure the machine with as many threads as the models have."""
    own = getattr(_given(run.engine, run.workload), "threads", None)
    measure = import_object(f"{ENGINES[run.engine].machine_rates}")
    with activity("measuring what this machine can do", is_brief=True):
        rates: MachineRates = measure(run.workload.threads or own)
    return rates


def _given(engine: str, workload: AnyWorkload) -> Any:
    is_pooling = isinstance(workload, PoolingWorkload)
    return given_options(engine, workload.engine_arguments, is_pooling=is_pooling)


def _measured(run: ComparisonRun, phase: str, name: str) -> float:
    """Return the seconds of a step or call as the comparison measured them, without a profiler."""
    return median(run.times[phase][name]) / steps_of(run.workload, phase)
