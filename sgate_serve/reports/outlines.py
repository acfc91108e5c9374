"""What `sgate inspect` says of a folder whose family is not supported, or which does not load."""

import math
from collections.abc import Iterator

from sgate_serve.checkpoint.outline.faults import ranges
from sgate_serve.checkpoint.outline.outline import Outline


def outline_lines(outline: Outline) -> Iterator[str]:
    """Yield the outline as lines of text, the faults last."""
    infos = outline.tensors.values()
    numbers = sum(math.prod(info.shape) for info in infos)
    stored = sum(info.num_bytes for info in infos)
    yield (
        f"{outline.folder}: model_type {outline.model_type}, {len(outline.stack)} layers, "
        f"{numbers:,} numbers in {stored:,} bytes; only its config and headers were read"
    )
    if outline.mixtures:
        yield _mixtures_line(outline)
    if not outline.faults:
        yield "config and headers agree"
    yield from (f"fault: {fault}" for fault in outline.faults)


def _mixtures_line(outline: Outline) -> str:
    mixtures = outline.mixtures.values()
    sizes = ranges({mixture.size for mixture in mixtures})
    units = ranges({count for mixture in mixtures for count in mixture.units})
    of_units = f", {units} units in each" if units else ""
    return f"{len(mixtures)} mixtures, {sizes} experts in each{of_units}"
