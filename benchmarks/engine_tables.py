"""The tables of our engine beside other engines, made from the records of engine_speed."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from sgate_serve.bench.rounds import ratios, round_sums
from sgate_serve.bench.workload import is_decode

# Group of contenders → our precision in it: the same width of weights, or the nearest.
GROUPS = {"int4": "int4", "int8": "int8", "float": "fp32"}
OURS = "ours "


def inside(engine: str) -> str:
    """Return the name of our pruned model, with 30% removed, in another engine."""
    return f"{OURS}in {engine}"


def engine_summary_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the short table: our dense model, and with 30% removed, over each other engine."""
    phases = phases_of(record)
    yield f"| ours over | {' | '.join(map(phase_name, phases))} |"
    yield "|---" * (len(phases) + 1) + "|"
    for group, results in record["results"].items():
        precision = GROUPS[group]
        for name in others_of(results):
            cells = (_over(results[phase], precision, name) for phase in phases)
            width = "" if name.endswith(precision) else f" ({precision} here)"
            yield f"| {name}{width} | {' | '.join(cells)} |"
            if (own := inside(name)) in results[phases[0]]:
                cells = (f"→ {speed_over(results[phase], own, name):.2f}×" for phase in phases)
                yield f"| {name} (our plugin in it) | {' | '.join(cells)} |"


def engine_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield one shape's table: tokens per second, and speed over our equally wide dense model."""
    options, phases = record["options"], phases_of(record)
    shape = f"hidden {options['hidden']} × {options['layers']} layers"
    yield f"| {shape}, tokens/s | {' | '.join(map(phase_name, phases))} |"
    yield "|---" * (len(phases) + 1) + "|"
    for group, results in record["results"].items():
        dense = f"{OURS}{GROUPS[group]} dense"
        shown: dict[str, str] = {}
        for name in others_of(results):
            shown[name] = name
            if inside(name) in results[phases[0]]:
                shown[inside(name)] = "30% removed, by our plugin"
        shown[dense] = dense
        shown |= {
            f"{OURS}{GROUPS[group]} {model}": f"{figures['removed']:.0%} removed"
            for model, figures in record["figures"].items()
        }
        for name, label in shown.items():
            cells = (
                f"{results[phase][name]['tokens_per_second']:.0f} "
                f"({speed_over(results[phase], name, dense):.2f}×)"
                for phase in phases
            )
            yield f"| {label} | {' | '.join(cells)} |"


def phases_of(record: Mapping[str, Any]) -> list[str]:
    return list(next(iter(record["results"].values())))


def phase_name(phase: str) -> str:
    """Return a phase for a heading: decode_batch_8 as "batch 8", prefill_512 as "prefill 512"."""
    text = phase.replace("_", " ")
    return text.removeprefix("decode ") if is_decode(phase) else text


def others_of(results: Mapping[str, Any]) -> list[str]:
    """Return the other engines of a group."""
    return [name for name in next(iter(results.values())) if not name.startswith(OURS)]


def speed_over(phase: Mapping[str, Any], name: str, other: str) -> float:
    """Return how much faster `name` is than `other`, as the median over rounds."""
    sums = [round_sums(phase[model]["seconds"]) for model in (other, name)]
    return median(ratios(*sums))


def _over(phase: Mapping[str, Any], precision: str, other: str) -> str:
    dense, pruned = (
        speed_over(phase, f"{OURS}{precision} {model}", other) for model in ("dense", "p30")
    )
    return f"{dense:.2f}× → {pruned:.2f}×"
