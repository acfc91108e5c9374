"""Sentences about a comparison that a person can act on, each computed from its record."""

from collections.abc import Iterator, Mapping
from typing import Any

from sgate_serve.bench.comparison import DENSE, PRUNED
from sgate_serve.bench.explain.attribution import HOST
from sgate_serve.engines.work import HEAD, INDEX, PROJECTIONS, ROUNDING, UNITS

# The key of the sentences that are not about one phase.
MODELS = "models"
# Kinds of work that removing heads and units from blocks makes smaller.
SHRINKING = (PROJECTIONS, UNITS)
# Shares of a phase's time below which a part is not worth a sentence.
WORTH, WORTH_OF_INDEX = 0.10, 0.01
# A product that keeps this much more of its time than of its weights is worth one too.
UNEVEN = 1.1
WIDTHS_MULTIPLE = 32
GB, MIB = 1e9, 2**20

Record = Mapping[str, Any]


def sentences(record: Record) -> dict[str, list[str]]:
    """Return what the record of an explanation says of both models, and of each phase, by name."""
    phases = {phase: list(_about_phase(record, phase)) for phase in record["phases"]}
    return {MODELS: list(_about_models(record)), **phases}


def _about_models(record: Record) -> Iterator[str]:
    dense, pruned = record["models"][DENSE], record["models"][PRUNED]
    before, after = sum(dense["kv_groups"]), sum(pruned["kv_groups"])
    if before == after:
        yield (
            f"attention did not shrink: all {before} KV groups are kept, and with them the keys "
            "and values of every token"
        )
    else:
        yield f"attention lost {before - after} of {before} KV groups"
    total, cache = sum(pruned["weight_bytes"].values()), record["machine"]["cache_bytes"]
    if cache and total < cache:
        yield (
            f"the pruned model's weights, {total / MIB:,.0f} MiB, fit the CPU's cache of "
            f"{cache / MIB:,.0f} MiB: bytes from memory are not what limits decoding"
        )
    widths = [width for width in pruned["mlp_widths"] if width % WIDTHS_MULTIPLE]
    if widths and dense["mlp_widths"] != pruned["mlp_widths"]:
        yield (
            f"{len(widths)} of {len(pruned['mlp_widths'])} MLP widths are no multiples of "
            f"{WIDTHS_MULTIPLE}; `sgate convert --align {WIDTHS_MULTIPLE}` shows whether this "
            "machine's kernels care"
        )


def _about_phase(record: Record, phase: str) -> Iterator[str]:
    dense, pruned = (record["phases"][phase][name] for name in (DENSE, PRUNED))
    yield _limit(dense)
    yield from _head(record, dense)
    yield from _products(record, dense, pruned)
    yield from _index(pruned)
    yield from _fixed(pruned)
    yield _machine(record, phase)


def _limit(dense: Record) -> str:
    share = sum(_share(dense, kind) for kind in SHRINKING)
    limit = f"{1 / (1 - share):.2f}x" if share < 1 else "any factor"
    return (
        f"{share:.0%} of the dense model's time are products inside the blocks, which gates make "
        f"smaller; removing all of them would give at most {limit}"
    )


def _head(record: Record, dense: Record) -> Iterator[str]:
    weights, share = record["models"][DENSE]["weight_bytes"], _share(dense, HEAD)
    if share >= WORTH:
        bytes_share = weights[HEAD] / sum(weights.values())
        yield (
            f"the head is {bytes_share:.0%} of the bytes and {share:.0%} of the time, and gates do "
            f"not prune it: alone it limits any speedup to {1 / share:.1f}x"
        )


def _products(record: Record, dense: Record, pruned: Record) -> Iterator[str]:
    for kind in SHRINKING:
        before, after = (record["models"][name]["weight_bytes"][kind] for name in (DENSE, PRUNED))
        if not before or kind not in dense["kinds"]:
            continue
        weights, time = after / before, pruned["kinds"].get(kind, 0.0) / dense["kinds"][kind]
        lost = pruned["kinds"].get(kind, 0.0) - weights * dense["kinds"][kind]
        text = f"{kind} kept {weights:.0%} of the weights and {time:.0%} of the time"
        if time > UNEVEN * weights and lost > 0:
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


def _fixed(pruned: Record) -> Iterator[str]:
    if (share := _share(pruned, ROUNDING)) >= WORTH:
        yield f"rounding activations to 8 bits costs {share:.0%} of the pruned model's time"
    if (share := _share(pruned, HOST)) >= WORTH:
        yield (
            f"{share:.0%} of the pruned model's time passes outside of its operators, the "
            "same before and after pruning, and larger batches spread it"
        )


def _machine(record: Record, phase: str) -> str:
    found, rates = record["achieved"][phase], record["machine"]
    shares = f"{found[DENSE]['share']:.0%} dense, {found[PRUNED]['share']:.0%} pruned"
    if "bytes_per_second" in found[DENSE]:
        able = f"{rates['read_bytes_per_second'] / GB:.1f} GB/s that this machine reads"
        speeds = (found[name]["bytes_per_second"] / GB for name in (DENSE, PRUNED))
        unit = "GB/s of weights"
    else:
        numbers = found[DENSE]["numbers"]
        able = (
            f"{rates['operations_per_second'][numbers] / GB:,.0f} G operations/s that a large "
            f"product in {numbers} reaches here"
        )
        speeds = (found[name]["operations_per_second"] / GB for name in (DENSE, PRUNED))
        unit = "G operations/s"
    both = " and ".join(f"{speed:,.1f}" for speed in speeds)
    return f"{both} {unit}, {shares} of the {able}"


def _share(attribution: Record, kind: str) -> float:
    """Return the share of a kind of work in a phase's time."""
    return float(attribution["kinds"].get(kind, 0.0) / attribution["seconds"])
