"""Which base and gates a folder belongs to: the plan says so, and verification asks for them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from converters.convert import ConvertOptions, convert, open_masked
from converters.model_card import CARD_FILE
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.cli import main
from sgate_serve.errors import CheckpointError, GatesError
from sgate_serve.gates import Gates, gates_fingerprint
from sgate_serve.plan import PLAN_FILE
from sgate_serve.plan.json_form import read_plan
from sgate_serve.verify.base_plan import plan_of, rounded_like
from sgate_serve.verify.certificate import CERTIFICATE_FILE
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.test_convert import random_gates, write_gates
from tests.small_llama import dense_llama, save
from tests.verify.tampering import tensor


@pytest.fixture
def options(tmp_path: Path) -> VerifyOptions:
    """A base with gates, and its conversion."""
    base = save(dense_llama(), tmp_path / "base")
    gates = write_gates(base, tmp_path / "gates", **random_gates(base, seed=4, closed=0.4))
    convert(ConvertOptions(str(base.folder), tmp_path / "out", gates))
    return VerifyOptions(str(base.folder), str(tmp_path / "out"), gates, "torch")


def test_gates_that_are_not_given_are_asked_for(
    options: VerifyOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    assert options.gates is not None
    fingerprint = gates_fingerprint(Gates.read(options.gates))
    assert read_plan(Path(options.out) / PLAN_FILE).gates_fingerprint == fingerprint
    assert main(["verify", options.checkpoint, options.out]) == 2
    said = capsys.readouterr().err
    assert f"out was converted with gates {fingerprint[:12]}…; give them by --gates" in said


def test_other_gates_are_refused(options: VerifyOptions, tmp_path: Path) -> None:
    base = Checkpoint.open(options.checkpoint)
    other = write_gates(base, tmp_path / "other", **random_gates(base, seed=5, closed=0.4))
    with pytest.raises(GatesError, match=r"converted with gates \w+…, and --gates are \w+…; give"):
        verify(replace(options, gates=other))
    convert(ConvertOptions(str(base.folder), tmp_path / "plain"))
    with pytest.raises(GatesError, match=r"plain was converted without gates; omit --gates"):
        verify(replace(options, out=str(tmp_path / "plain")))


def test_plans_of_older_releases_do_not_know_their_gates(options: VerifyOptions) -> None:
    path = Path(options.out) / PLAN_FILE
    old = json.loads(path.read_text())
    del old["gates_fingerprint"]
    path.write_text(json.dumps(old))
    assert read_plan(path).gates_fingerprint is None
    assert verify(options).passed
    differs = verify(replace(options, gates=None))
    assert not differs.passed and differs.tensors_equal is False


def test_every_gate_and_delta_counts(options: VerifyOptions) -> None:
    assert options.gates is not None
    gates = Gates.read(options.gates)
    found = {gates_fingerprint(gates), gates_fingerprint(replace(gates, source="elsewhere"))}
    assert len(found) == 1
    key, values = next(iter(gates.values.items()))
    changed = values.copy()
    changed[-1] = 0.125
    found.add(gates_fingerprint(replace(gates, values={**gates.values, key: changed})))
    base = Checkpoint.open(options.checkpoint)
    for name in ("model.norm.weight", "lm_head.weight"):
        found.add(gates_fingerprint(replace(gates, deltas={name: base.tensors[name]})))
    assert len(found) == 4


def test_a_folder_without_plan_is_not_verified(options: VerifyOptions) -> None:
    (Path(options.out) / PLAN_FILE).unlink()
    result = verify(options)
    assert result.max_abs_diff < result.tolerance and not result.passed
    assert result.difference is not None
    assert result.difference.endswith("must be; convert the base again")
    assert (result.tensors_equal, result.config_equal, result.files_equal) == (None,) * 3
    assert any(line.startswith("not checked: stored tensors, config") for line in result.lines())


def test_a_conversion_is_not_compared_with_itself(
    options: VerifyOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken one would pass, and its certificate of failure be replaced."""
    out = Path(options.out)
    tensor("model.norm.weight", 0, 1.0)(out)
    assert main(["verify", options.checkpoint, options.out, "--gates", str(options.gates)]) == 1
    kept = [(out / name).read_bytes() for name in (CERTIFICATE_FILE, CARD_FILE)]
    capsys.readouterr()
    assert main(["verify", f"{out}/../out", options.out]) == 2
    assert "with itself; give the base that it was converted from" in capsys.readouterr().err
    assert [(out / name).read_bytes() for name in (CERTIFICATE_FILE, CARD_FILE)] == kept
    (out / PLAN_FILE).unlink()
    with pytest.raises(CheckpointError, match="is a conversion, and would be compared with itself"):
        verify(replace(options, checkpoint=options.out, gates=None))


def test_a_base_verifies_as_itself_and_a_copy_does_not(
    options: VerifyOptions, tmp_path: Path
) -> None:
    result = verify(VerifyOptions(options.checkpoint, options.checkpoint))
    assert result.passed and any("compared with itself" in what for what in result.not_checked)
    before = sorted(Path(options.checkpoint).iterdir())
    assert main(["verify", options.checkpoint, options.checkpoint]) == 0
    assert sorted(Path(options.checkpoint).iterdir()) == before
    shutil.copytree(options.checkpoint, tmp_path / "copy")
    assert not verify(VerifyOptions(options.checkpoint, str(tmp_path / "copy"))).passed


@pytest.mark.parametrize("precision", [None, "bf16", "fp16", "fp32"])
def test_a_base_of_several_types_is_rounded_as_it_was(
    precision: str | None, tmp_path: Path
) -> None:
    """The embedding is bf16 already, so it alone does not show whether the rest was rounded."""
    model = dense_llama().to(torch.bfloat16)
    model.model.norm.float()
    base = save(model, tmp_path / "base")
    convert(ConvertOptions(str(base.folder), tmp_path / "out", precision=precision))
    out, masked = Checkpoint.open(tmp_path / "out"), open_masked(base.folder, None)
    rounded = rounded_like(masked, plan_of(out, masked).plan, out)
    types = {name: info.dtype for name, info in out.tensors.items()}
    assert types == {name: rounded.dtype(name) for name in types}
    assert verify(VerifyOptions(str(base.folder), str(out.folder), engine="torch")).passed


def test_files_that_nothing_compares_are_named(options: VerifyOptions) -> None:
    (Path(options.out) / "notes.md").write_text("mine")
    (Path(options.out) / ".gitattributes").write_text("hidden")
    np.save(Path(options.out) / "array.npy", np.zeros(1))
    result = verify(options)
    assert result.passed
    assert "files that no conversion writes: array.npy, notes.md" in result.not_checked
