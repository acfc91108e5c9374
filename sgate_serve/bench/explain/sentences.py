"""Sentences about a comparison that a person can act on, each computed from its record."""

from collections.abc import Iterator, Mapping
from typing import Any

from sgate_serve.bench.comparison import DENSE, PRUNED
from sgate_serve.bench.explain.attribution import HOST
from sgate_serve.bench.workload import is_decode
from sgate_serve.engines.work import ATTENDING, HEAD, INDEX, PROJECTIONS, ROUNDING, UNITS

# The key of the sentences that are not about one phase.
MODELS = "models"
# Products of weights that gates close, and all kinds of work that shrink with them.
PRODUCTS = (PROJECTIONS, UNITS)
SHRINKING = (PROJECTIONS, ATTENDING, UNITS)
# Shares of a phase's time below which a part is not worth a sentence.
WORTH, WORTH_OF_INDEX, WORTH_OF_LOSS = 0.10, 0.01, 0.01
# A product that keeps this much more of its time than of its weights is worth one too.
UNEVEN = 1.1
WIDTHS_MULTIPLE = 32
# How much a profile may differ from the measurement, and a speedup from its ideal.
DISAGREES, CLOSE = 1.2, 0.95
GB, MIB = 1e9, 2**20

Record = Mapping[str, Any]


def sentences(record: Record) -> dict[str, list[str]]:
    """Return what the record of an explanation says of both models, and of each phase, by name."""
    phases = {phase: list(_about_phase(record, phase)) for phase in record["phases"]}
    return {MODELS: list(_about_models(record)), **phases}


def _about_models(record: Record) -> Iterator[str]:
    dense, pruned = record["models"][DENSE], record["models"][PRUNED]
    if dense["weights"] == pruned["weights"]:
        yield (
            "both models store as many weights, so nothing was removed: zeros in dense shapes "
            "bring no speed; `sgate convert` removes them"
        )
        return
    yield from (_gap(record, phase) for phase in record["phases"])
    before, after = sum(dense["kv_groups"]), sum(pruned["kv_groups"])
    if after < before:
        yield f"{before - after} of {before} KV groups were removed"
    elif after == before:
        yield f"none of the {before} KV groups was removed, so attention itself did not shrink"
    total, cache = sum(pruned["weight_bytes"].values()), record["machine"]["cache_bytes"]
    if cache and total < cache and any(is_decode(phase) for phase in record["phases"]):
        yield (
            f"the pruned model's weights, {total / MIB:,.0f} MiB, fit the CPU's cache of "
            f"{cache / MIB:,.0f} MiB: bytes from memory are not what limits decoding"
        )
    widths = [width for width in pruned["mlp_widths"] if width % WIDTHS_MULTIPLE]
    if widths and dense["mlp_widths"] != pruned["mlp_widths"]:
        yield (
            f"{len(widths)} of {len(pruned['mlp_widths'])} MLP widths are not multiples of "
            f"{WIDTHS_MULTIPLE}; a comparison with `sgate convert --align {WIDTHS_MULTIPLE}` shows "
            "whether this machine's kernels care"
        )


def _about_phase(record: Record, phase: str) -> Iterator[str]:
    dense, pruned = (record["phases"][phase][name] for name in (DENSE, PRUNED))
    yield _limit(dense)
    yield from _head(record, dense)
    yield from _products(record, dense, pruned)
    yield from _index(pruned)
    yield from _fixed(dense, pruned)
    if is_decode(phase):
        yield _read(record, phase)
    else:
        yield _multiplied(record, phase)


def _gap(record: Record, phase: str) -> str:
    """Say how far a phase is from its ideal, and which parts take more than that leaves them."""
    measured, ideal = record["measured"][phase], record["ideal"][phase]
    text = f"{phase}: {measured:.2f}x measured, {ideal:.2f}x ideal"
    dense, pruned = (record["phases"][phase][name] for name in (DENSE, PRUNED))
    profiled = dense["seconds"] / pruned["seconds"]
    if not 1 / DISAGREES < profiled / measured < DISAGREES:
        return (
            f"{text}; the profile says {profiled:.2f}x, so other programs disturbed one of them: "
            "do not read its parts, and repeat it on a machine that does nothing else"
        )
    if measured > CLOSE * ideal:
        return text
    kinds = {*dense["kinds"], *pruned["kinds"]}
    over = {k: pruned["kinds"].get(k, 0.0) - dense["kinds"].get(k, 0.0) / ideal for k in kinds}
    largest = sorted(kinds, key=lambda kind: -over[kind])[:2]
    parts = " and ".join(f"{kind} ({1000 * over[kind]:.2f} ms)" for kind in largest)
    return f"{text}; most of what is missing is {parts}"


def _limit(dense: Record) -> str:
    share = sum(_share(dense, kind) for kind in SHRINKING)
    limit = f"at most {1 / (1 - share):.2f}x" if share < 1 else "any factor"
    return (
        f"{share:.0%} of the dense model's time goes to what shrinks with its blocks (their "
        f"products, and attention itself): removing all of it would give {limit}"
    )


def _head(record: Record, dense: Record) -> Iterator[str]:
    before, after = (record["models"][name]["weights"][HEAD] for name in (DENSE, PRUNED))
    share, weights = _share(dense, HEAD), record["models"][DENSE]["weight_bytes"]
    if share >= WORTH and before == after:
        yield (
            f"the head is {weights[HEAD] / sum(weights.values()):.0%} of the bytes and {share:.0%} "
            f"of the time, and is as large as before: alone it limits any speedup to "
            f"{1 / share:.1f}x"
        )


def _products(record: Record, dense: Record, pruned: Record) -> Iterator[str]:
    for kind in PRODUCTS:
        before, after = (record["models"][name]["weights"][kind] for name in (DENSE, PRUNED))
        if not before or kind not in dense["kinds"]:
            continue
        weights, time = after / before, pruned["kinds"].get(kind, 0.0) / dense["kinds"][kind]
        lost = pruned["kinds"].get(kind, 0.0) - weights * dense["kinds"][kind]
        text = f"{kind} kept {weights:.0%} of the weights and {time:.0%} of the time"
        if time > UNEVEN * weights and lost > WORTH_OF_LOSS * pruned["seconds"]:
            text += (
                f": {1000 * lost:.2f} ms more than in proportion, "
                f"{lost / pruned['seconds']:.0%} of the pruned model's time"
            )
        yield text


def _index(pruned: Record) -> Iterator[str]:
    share = _share(pruned, INDEX)
    if share >= WORTH_OF_INDEX:
        yield (
            f"index work costs {share:.0%} of the pruned model's time: a higher `--index-price` of "
            "`sgate convert` keeps linears whole where it does not pay"
        )


def _fixed(dense: Record, pruned: Record) -> Iterator[str]:
    if (share := _share(pruned, ROUNDING)) >= WORTH:
        yield f"rounding activations to 8 bits costs {share:.0%} of the pruned model's time"
    if (share := _share(pruned, HOST)) >= WORTH:
        before, after = (1000 * one["kinds"].get(HOST, 0.0) for one in (dense, pruned))
        yield (
            f"{share:.0%} of the pruned model's time passes outside of its operators: {before:.2f} "
            f"ms dense, {after:.2f} ms pruned, which gates do not make shorter"
        )


def _read(record: Record, phase: str) -> str:
    able = record["machine"]["read_bytes_per_second"] / GB
    found = [record["achieved"][phase][name] for name in (DENSE, PRUNED)]
    speeds = " and ".join(f"{one['bytes_per_second'] / GB:,.1f}" for one in found)
    shares = " and ".join(f"{one['share']:.0%}" for one in found)
    return (
        f"without the profiler, dense and pruned read {speeds} GB/s of weights: {shares} of the "
        f"{able:.1f} GB/s that this machine reads from memory"
    )


def _multiplied(record: Record, phase: str) -> str:
    parts = []
    for name in (DENSE, PRUNED):
        one = record["achieved"][phase][name]
        able = record["machine"]["operations_per_second"].get(one["numbers"])
        share = "" if able is None else f" ({one['share']:.0%} of {able / GB:,.0f})"
        speed = f"{one['operations_per_second'] / GB:,.1f}"
        parts.append(f"{speed} G operations/s in {one['numbers']}{share}")
    return (
        f"without the profiler, dense reaches {parts[0]}, pruned {parts[1]}; in brackets is what a "
        "product of large matrices reaches here"
    )


def _share(attribution: Record, kind: str) -> float:
    """Return the share of a kind of work in a phase's time."""
    return float(attribution["kinds"].get(kind, 0.0) / attribution["seconds"])
