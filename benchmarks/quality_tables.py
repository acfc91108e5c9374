"""The quality tables, made from records of benchmarks.quality and benchmarks.language_quality."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.speed_tables import interval_cell

SCALES = {"accuracy": (100.0, "{:.1f} ± {:.1f}%"), "perplexity": (1.0, "{:.2f} ± {:.2f}")}
UNITS = {"accuracy": "points", "perplexity": "%"}
STAGES = ("masked", "recovered")
CHANGES = {"accuracy": "{:+.1f}{} points", "perplexity": "{:+.1f}{}%"}


def quality_blocks(name: str, record: Mapping[str, Any], score: str) -> dict[str, str]:
    """Return the blocks of a page: the table, and how far the engines' scores differ."""
    return {
        name: "\n".join(quality_rows(record, score)),
        f"{name}-equality": equality_sentence(record),
    }


def quality_rows(record: Mapping[str, Any], score: str) -> Iterator[str]:
    """Yield a row for each cell: score, change against dense, removed fractions, and speed.

    A cell with several seeds shows the mean and its standard error, and the first seed's figures.
    """
    phases = phases_of(record["cells"])
    yield from _header(
        "seeds",
        f"held-out {score}",
        "against dense",
        "removed: naive / compiled / executed",
        "trained parameters",
        *map(title_of, phases),
    )
    for name, first in firsts_of(record).items():
        summary = record["summary"][name]
        figures = (first[f"removed_{kind}"] for kind in ("naive", "compiled", "executed"))
        trained = max(phase["trained_parameters"] for phase in first["phases"].values())
        yield _row(
            name,
            str(len(summary["seeds"])),
            _score(summary, score),
            _change(record, summary, score),
            " / ".join(f"{figure:.1%}" for figure in figures),
            f"{trained:,}",
            *(_speed(first, phase) for phase in phases),
        )


def _header(*titles: str) -> Iterator[str]:
    yield f"| {_row(*titles)}"
    yield "|---" * (len(titles) + 1) + "|"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def firsts_of(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return name → cell of its first seed, ordered by removed fraction, then by best score."""
    cells: dict[str, Mapping[str, Any]] = {}
    for cell in sorted(record["cells"], key=lambda cell: int(cell["seed"])):
        cells.setdefault(cell["cell"], cell)

    def key(name: str) -> tuple[float, float]:
        summary = record["summary"][name]
        better = summary.get("accuracy", -summary.get("perplexity", 0.0))
        return round(cells[name]["removed"], 2), -better

    return {name: cells[name] for name in sorted(cells, key=key)}


def phases_of(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the phases in which the speed of the cells was measured."""
    measured = [cell["speed"]["speedups"]["onnx"] for cell in cells if "speed" in cell]
    return list(measured[0]) if measured else []


def title_of(phase: str) -> str:
    kind, _, batch = phase.rpartition("_")
    return f"speed at batch {batch}" if kind.endswith("batch") else f"{phase} speed"


def _score(summary: Mapping[str, Any], score: str) -> str:
    scale, text = SCALES[score]
    return text.format(scale * summary[score], scale * summary["standard_error"])


def _change(record: Mapping[str, Any], summary: Mapping[str, Any], score: str) -> str:
    change = summary["against_dense"]
    if change is None:
        return ""
    whole = 1.0 if score == "accuracy" else record["summary"]["dense"][score]
    error = summary.get("against_dense_standard_error")
    spread = f" ± {100 * error / whole:.1f}" if error else ""
    return CHANGES[score].format(100 * change / whole, spread)


def _speed(cell: Mapping[str, Any], phase: str) -> str:
    if "speed" not in cell:
        return ""
    own = cell["speed"]["speedups"]["onnx"][phase]
    return f"{own['ratio']:.2f}× ({own['efficiency']:.2f})"


def gate_cost_sentence(record: Mapping[str, Any]) -> str:
    """Say how much time and memory gates add to a LoRA step: medians and ranges over the rounds."""
    parts = []
    for name, over in record["over_lora"].items():
        time, memory = (
            f"{of['median'] - 1:+.0%} ({of['least'] - 1:+.0%} to {of['largest'] - 1:+.0%})"
            for of in (over["seconds"], over["bytes"])
        )
        parts.append(f"{name} {time} of its time and {memory} of the memory that it takes")
    return f"Over a step of LoRA: {'; '.join(parts)}."


def balance_sentence(record: Mapping[str, Any]) -> str:
    """Say how fast masks of the joint and of the even balance are, measured together."""
    balances = {"joint": record["speedups"]["onnx"], "even": record["beside"]["even"]}
    parts = []
    for phase in record["beside"]["even"]:
        speeds = (f"{name} {interval_cell(of[phase])}" for name, of in balances.items())
        parts.append(f"{title_of(phase)} {', '.join(speeds)}")
    rounds = record["workload"]["rounds"]
    return f"Over dense, {rounds} rounds: {'; '.join(parts)}."


def equality_sentence(record: Mapping[str, Any]) -> str:
    """Say how far the scores of converted models are from those of masked ones, per engine."""
    gaps: dict[str, list[float]] = defaultdict(list)
    for cell in record["cells"]:
        found = dict(cell.get("converted", {}))
        masked = found.pop("masked", {})
        for engine, scores in found.items():
            gaps[engine].append(max(abs(scores[name] - masked[name]) for name in masked))
    listed = (f"{max(of):.1g} on {name} ({len(of)} scored)" for name, of in sorted(gaps.items()))
    shown = ", ".join(listed)
    return f"Scores of converted models differ from those of masked ones by at most {shown}."


def smollm2_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row for each cell of SmolLM2's table: perplexities, and those over dense's.

    A cell with several seeds shows its first seed's perplexities, and the mean of the others.
    """
    firsts = {cell["cell"]: cell for cell in reversed(record["cells"])}
    texts = list(next(iter(firsts.values()))["scores_elsewhere"])
    yield from _header(
        "held out, before recovery",
        "after recovery",
        *(f"{text.replace('_', ' ')}, after" for text in texts),
        "over dense trained as long: held out",
        "other texts",
        *(f"int8 {title_of(phase)}" for phase in phases_of(record["cells"])),
    )
    for name in sorted(firsts, key=lambda name: (round(firsts[name]["removed"], 2), name)):
        cell, over = firsts[name], record["summary"][name]
        yield _row(
            f"{name} ({cell['removed_overall']:.0%} of all parameters)"
            if cell["removed"]
            else name,
            *(f"{cell['scores'][stage]['perplexity']['value']:.2f}" for stage in STAGES),
            *(
                f"{cell['scores_elsewhere'][text]['recovered']['perplexity']['value']:.2f}"
                for text in texts
            ),
            *(f"{over[kind] - 1:+.0%}" for kind in ("in_domain", "out_of_domain")),
            *(_speed(cell, phase) for phase in phases_of(record["cells"])),
        )


def token_rows(records: Sequence[Mapping[str, Any]], name: str) -> Iterator[str]:
    """Yield a row for each record of SmolLM2: what its cell `name` costs after so many tokens."""
    yield from _header(
        "held out, dense",
        f"held out, {name}",
        "over dense: held out",
        "other texts",
    )
    for record in records:
        firsts = {cell["cell"]: cell for cell in reversed(record["cells"])}
        over = record["summary"][name]
        yield _row(
            f"{tokens_of(record) / 1000:.0f} thousand tokens",
            *(
                f"{firsts[of]['scores']['recovered']['perplexity']['value']:.2f}"
                for of in ("dense", name)
            ),
            *(f"{over[kind] - 1:+.0%}" for kind in ("in_domain", "out_of_domain")),
        )


def tokens_of(record: Mapping[str, Any]) -> int:
    """Return how many tokens each cell of a record trained on."""
    options = record["options"]
    tokens: int = options["steps"] * options["batch_size"] * options["seq_len"]
    return tokens


def recovery_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row of perplexities for each way to recover, the state before it first."""
    yield from _header(*record["before"])
    variants = {"nothing yet": record["before"]}
    variants |= {one["variant"]: one["perplexity"] for one in record["variants"]}
    for name, perplexities in variants.items():
        yield _row(name, *(f"{value:.1f}" for value in perplexities.values()))


def smollm2_sentence(record: Mapping[str, Any]) -> str:
    """Say what the default costs at each target, over the dense model trained as long."""
    costs = "; ".join(
        f"{of['in_domain'] - 1:+.0%} with {name.removeprefix('default ')} of the block weights "
        f"removed ({of['out_of_domain'] - 1:+.0%} on other kinds of text)"
        for name, of in sorted(record["summary"].items())
        if name.startswith("default ") and "," not in name
    )
    return (
        "What pruning costs a real model, SmolLM2-135M-Instruct, in perplexity on held-out "
        "documentation, over the dense model trained on the same "
        f"{tokens_of(record) / 1000:.0f} thousand tokens: {costs}."
    )


def classifier_sentence(record: Mapping[str, Any]) -> str:
    """Say what pruning costs SmolLM2 as a classifier, at each target."""
    dense = record["summary"]["dense"]
    starts = {cell["cell"]: cell["scores"]["dense"]["accuracy"] for cell in record["cells"]}
    pruned = ", ".join(
        f"{100 * of['accuracy']:.1f}% with {name.rpartition(' ')[2]} removed"
        for name, of in sorted(record["summary"].items())
        if name.startswith("default ")
    )
    error = starts["dense"]["standard_error"]
    return (
        "As a classifier of 20 kinds of text it keeps its accuracy on held-out files: "
        f"{100 * starts['dense']['value']:.1f}% dense and {100 * dense['accuracy']:.1f}% after as "
        f"many further steps as the others take, {pruned} (± {100 * error:.1f} points each)."
    )
