"""Tables of the KV cache in int8, and of the start of a server, from their records."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.speed_tables import spread_cell


def kv_quality_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the perplexity on each text with keys and values in floats and in int8."""
    exact = record["perplexity"]["floats"]
    yield f"| keys and values in | {' | '.join(exact)} |"
    yield "|---" * (len(exact) + 1) + "|"
    for kind, found in record["perplexity"].items():
        cells = [f"{value:.2f} ({value / exact[text] - 1:+.1%})" for text, value in found.items()]
        yield f"| {kind} | {' | '.join(cells)} |"


def kv_speed_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the speed with int8 over that with floats, by precision of the weights and context."""
    yield "| weights | tokens before | reading them | decode, batch 1 | batch 8 |"
    yield "|---|---|---|---|---|"
    for precision, own in record["speed"].items():
        for length in record["options"]["contexts"].split(","):
            phases = (f"read_{length}", *(f"decode_{length}_batch_{n}" for n in (1, 8)))
            cells = (spread_cell(own["speedups"][phase]) for phase in phases)
            yield f"| {precision} | {length} | {' | '.join(cells)} |"


def kv_memory_sentence(record: Mapping[str, Any]) -> str:
    """Say how many bytes a token takes in either cache."""
    sizes = next(iter(record["speed"].values()))["bytes_per_token"]
    return f"A token takes {sizes['floats']} bytes in fp32 and {sizes['int8']} in int8."


def start_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield how long each start takes, with the fastest and the slowest, and its memory."""
    yield "| model | graph | to the port, s | to the first token, s | CPU time, s | memory, MB |"
    yield "|---|---|---|---|---|---|"
    for model in record["models"]:
        for graph in ("built", "found"):
            cell = record["cells"][f"{model}: {graph}"]
            own = record["medians"][f"{model}: {graph}"]
            firsts = [one["first_token"] for one in cell]
            spread = f" ({min(firsts):.1f} to {max(firsts):.1f})" if len(cell) > 1 else ""
            yield (
                f"| {model} | {graph} | {own['listening']:.1f} | {own['first_token']:.1f}{spread} "
                f"| {own['cpu']:.1f} | {own['rss_bytes'] / 1e6:.0f} |"
            )


def way_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what each way to hold the weights costs: CPU time, memory and bytes on disk."""
    yield "| model | weights | opening, CPU s | token, CPU ms | private memory, MB | disk, MB |"
    yield "|---|---|---|---|---|---|"
    for model in record["models"]:
        for way in record["ways"]:
            own = record["medians"][f"{model}: {way}"]
            yield (
                f"| {model} | {way} | {own['open_cpu']:.2f} | {1000 * own['step_cpu']:.0f} "
                f"| {own['private_bytes'] / 1e6:.0f} | {own['stored_bytes'] / 1e6:.0f} |"
            )
