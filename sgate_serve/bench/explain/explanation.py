"""The record of `sgate bench compare --explain`: attribution, sizes, the machine, sentences."""

from typing import Any

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.bench.compare import DECODE, ComparisonRun
from sgate_serve.bench.comparison import DENSE, PRUNED
from sgate_serve.bench.explain.attribution import Attribution, attribute
from sgate_serve.bench.explain.sentences import sentences
from sgate_serve.bench.ideal import prefill_flops, weight_bytes
from sgate_serve.bench.workload import AnyWorkload, tokens_per_run
from sgate_serve.engines.machine import MachineRates
from sgate_serve.engines.table import ENGINES, import_object
from sgate_serve.environment import cache_bytes
from sgate_serve.onnx_format.precision import Precision
from sgate_serve.progress import activity


def explain(run: ComparisonRun) -> dict[str, Any]:
    """Return where the time of dense and pruned goes, and sentences that follow from it.

    `run` has been measured, so the precisions of its models are known.
    """
    models, workload = {DENSE: run.dense, PRUNED: run.pruned}, run.workload
    phases = attribute(models, run.engine, workload)
    with activity("measuring what this machine can do", is_brief=True):
        measured_rates = import_object(f"{ENGINES[run.engine].machine_rates}")
        rates: MachineRates = measured_rates(workload.threads)
    held = {name: run.precisions[name] for name in models}
    record: dict[str, Any] = {
        "phases": {
            phase: {name: one.to_json() for name, one in by_model.items()}
            for phase, by_model in phases.items()
        },
        "models": {name: _sizes(model.spec, held[name]) for name, model in models.items()},
        "machine": {
            "read_bytes_per_second": rates.read_bytes,
            "copied_bytes_per_second": rates.copied_bytes,
            "operations_per_second": dict(rates.products),
            "cache_bytes": cache_bytes(),
        },
        "achieved": {
            phase: {
                name: _achieved(models[name].spec, held[name], phase, one, workload, rates)
                for name, one in by_model.items()
            }
            for phase, by_model in phases.items()
        },
    }
    return record | {"sentences": sentences(record)}


def _sizes(spec: ModelSpec, precision: Precision) -> dict[str, Any]:
    return {
        "precision": precision.name,
        "weight_bytes": weight_bytes(spec, precision),
        "kv_groups": [layer.num_kv_heads for layer in spec.layers],
        "mlp_widths": [layer.mlp_units for layer in spec.layers],
    }


def _achieved(
    spec: ModelSpec,
    precision: Precision,
    phase: str,
    one: Attribution,
    workload: AnyWorkload,
    rates: MachineRates,
) -> dict[str, Any]:
    """Return what a phase reads or computes a second, and its share of what the machine can do."""
    if phase.startswith(DECODE):
        speed = sum(weight_bytes(spec, precision).values()) / one.seconds
        return {"bytes_per_second": speed, "share": speed / rates.read_bytes}
    texts = tokens_per_run(workload, phase) // workload.prefill_tokens
    speed = texts * prefill_flops(spec, workload.prefill_tokens) / one.seconds
    name = multiplied_in(precision, rates)
    return {
        "operations_per_second": speed,
        "share": speed / rates.products[name],
        "numbers": name,
    }


def multiplied_in(precision: Precision, rates: MachineRates) -> str:
    """Return the type in which the engine multiplies: integers, 16 bits if it can, else fp32."""
    wanted = "int8" if precision.bits <= 8 else "bf16" if precision.bits == 16 else "fp32"
    return wanted if wanted in rates.products else "fp32"
