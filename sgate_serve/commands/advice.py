"""What to do next when a plan removes nothing."""

from pathlib import Path

from sgate_serve.architecture.sgate_config import SGATE_MODEL_TYPE
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.plan import PLAN_FILE
from sgate_serve.plan.figures import Figures


def next_step(base: Checkpoint, gates: Path | None, figures: Figures) -> str | None:
    """Return why a plan removes nothing, and the next step; None if it removes something."""
    if figures.overall > 0:
        return None
    if figures.naive > 0:
        return (
            f"nothing can be removed, though gates or zeros close {figures.naive:.2%} of the block "
            "weights: every linear needs the rest, at this --align and --index-price; lower "
            "--align, give --index-price 0, or leave --uniform out"
        )
    if gates is not None:
        return (
            f"nothing to remove: the gates of {gates} are all open; give other gates, or train "
            "some for a higher --target"
        )
    if _is_pruned(base):
        return f"nothing to remove: {base.folder} is pruned already, so serve it as it is"
    as_it_is = "" if base.whole is None else ", so `sgate convert` writes its text part as it is"
    return (
        f"nothing to remove: no row or column of {base.folder} is zero{as_it_is}; find out what it "
        f"can do without, with `sgate train {base.folder} --data TEXT.txt --target 0.3 --out "
        "GATES`, and come back with --gates GATES"
    )


def _is_pruned(base: Checkpoint) -> bool:
    is_ragged = base.layout is not None or base.config.get("model_type") == SGATE_MODEL_TYPE
    return is_ragged or (base.folder / PLAN_FILE).exists()
