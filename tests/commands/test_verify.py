"""`sgate verify` writes its verdict into the folder, unless that says nothing of the folder."""

import json
from pathlib import Path

import pytest

from sgate_serve.verify.certificate import CERTIFICATE_FILE
from tests.commands.running import run
from tests.small_llama import dense_llama, save
from tests.verify.test_verify import tamper


def test_a_wrong_base_leaves_a_good_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = save(dense_llama(), tmp_path / "base"), tmp_path / "out"
    other = save(dense_llama(seed=1), tmp_path / "other")
    assert run(capsys, "convert", base.folder, "--out", out)[0] == 0
    certificate = out / CERTIFICATE_FILE
    # Without a good one, a bad one is written.
    assert run(capsys, "verify", other.folder, out)[0] == 1
    assert not json.loads(certificate.read_text())["passed"]
    assert run(capsys, "verify", base.folder, out)[0] == 0
    good = certificate.read_bytes()
    status, text, _ = run(capsys, "verify", other.folder, out)
    assert status == 1 and "DIFFERS: " in text
    assert f"{certificate} stays: verified on torch" in text
    assert certificate.read_bytes() == good
    # One that no longer holds is replaced, and so is one of the same base.
    tamper(out, "model.layers.0.mlp.down_proj.weight")
    assert run(capsys, "verify", other.folder, out)[0] == 1
    assert certificate.read_bytes() != good
    assert run(capsys, "verify", base.folder, out)[0] == 1
    assert not json.loads(certificate.read_text())["passed"]
