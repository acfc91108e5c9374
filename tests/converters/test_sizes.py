"""Smaller sizes: what is sliced out of a folder is what the conversion of their masks writes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.convert import ConvertOptions, convert, make_plan, open_masked
from converters.sizes import kept, masked_to
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.gates.order import num_steps
from sgate_serve.loaders.sized_folder import open_size
from sgate_serve.plan.sizes import read_sizes
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masks.removal_target import WeightTarget
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.train_options import COUPLED
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.zoo import VARIANTS, Variant, build


def write_ranked_gates(
    base: Checkpoint, folder: Path, target: float, granularity: str = COUPLED, **ranking: Any
) -> Path:
    """Write the gates of a random ranking, as training selects them."""
    kind, rng = GRANULARITIES[granularity], np.random.default_rng(0)
    scores = {
        site.gate.key: rng.random(site.gate.num_gates).astype(np.float32)
        for site in kind.sites(base.spec)
    }
    selected = kind.select(
        base.spec, Ranking(scores, **ranking), WeightTarget(target), base.fingerprint
    )
    replace(selected.gates, base_digest=base.digest).write(folder)
    return folder


def keeps_of(base: Path, gates: Path, *shares: float) -> tuple[float, ...]:
    """Return the fractions that are kept after these shares of all further steps."""
    masked = open_masked(base, gates)
    assert masked.gates is not None
    steps = num_steps(masked.gates.order)
    plans = (make_plan(masked_to(masked, max(1, int(share * steps)))) for share in shares)
    return tuple(round(kept(plan, masked.spec), 4) for plan in plans)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_sizes(root: Path, options: ConvertOptions) -> None:
    """Compare each size that is sliced out with the conversion of its own mask, all bytes of it."""
    convert(options)
    assert options.gates is not None
    masked = open_masked(options.checkpoint, options.gates)
    assert masked.gates is not None
    sizes = read_sizes(options.out)
    assert len(sizes) == len(options.sizes)
    for size in sizes:
        own = root / f"gates-{size.keep}"
        masked.gates.closed_to(size.step).write(own, {})
        expected = root / f"out-{size.keep}"
        convert(replace(options, gates=own, out=expected, sizes=()))
        found = contents(open_size(options.out, size.keep).folder)
        wanted = contents(expected)
        assert found.keys() == wanted.keys()
        assert [name for name in found if found[name] != wanted[name]] == []
        assert size.plan == replace(size.plan, layers=size.plan.layers)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_size_is_the_conversion_of_its_mask(variant: Variant, tmp_path: Path) -> None:
    build(variant, 0).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    gates = write_ranked_gates(base, tmp_path / "gates", 0.1)
    keeps = keeps_of(base.folder, gates, 0.3, 0.8)
    check_sizes(
        tmp_path, ConvertOptions(str(base.folder), tmp_path / "out", gates, sizes=keeps)
    )
    result = verify(
        VerifyOptions(str(base.folder), str(tmp_path / "out"), gates, "torch", keep=keeps[1])
    )
    assert result.passed and result.tensors_equal and result.plan_equal, result.differences
