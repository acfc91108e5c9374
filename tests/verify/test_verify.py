"""Verification: it holds for real conversions and names the layer that was tampered with."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from converters.convert import ConvertOptions, convert
from converters.model_card import CARD_FILE
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import CheckpointError, EngineError, GatesError
from sgate_serve.onnx_format.names import META_WEIGHTS_DIGEST, stored_text
from sgate_serve.plan import PLAN_FILE
from sgate_serve.reports.inspection import Inspection
from sgate_serve.verify.certificate import CERTIFICATE_FILE
from sgate_serve.verify.prompts import random_prompts
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.test_convert import random_gates, write_gates
from tests.small_llama import dense_llama, save
from tests.verify.tampering import (
    Change,
    companion,
    config,
    graph_attribute,
    graph_weight,
    no_plan,
)

ENGINES = ("torch", "onnx")


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A base with gates and deltas, and its conversion with a graph."""
    base = save(dense_llama(), tmp_path / "base")
    write_gates(base, tmp_path / "gates", **random_gates(base, seed=4, closed=0.4))
    folders = {name: tmp_path / name for name in ("base", "gates", "out")}
    convert(ConvertOptions(str(base.folder), folders["out"], folders["gates"], ("hf", "onnx")))
    return folders


def options(folders: dict[str, Path], engine: str, out: str = "out") -> VerifyOptions:
    return VerifyOptions(str(folders["base"]), str(folders[out]), folders["gates"], engine)


def tamper(folder: Path, name: str, amount: float = 1.0) -> None:
    """Change one stored number of a tensor, outside the bytes that the fingerprint covers."""
    info = Checkpoint.open(folder).tensors[name]
    content = bytearray(info.file.read_bytes())
    middle = (info.start + info.end) // 8 * 4
    value = np.frombuffer(content[middle : middle + 4], np.float32) + np.float32(amount)
    content[middle : middle + 4] = value.tobytes()
    info.file.write_bytes(bytes(content))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_real_conversion_holds(folders: dict[str, Path], engine: str) -> None:
    result = verify(options(folders, engine))
    assert result.passed and result.difference is None
    assert result.tensors_equal is True
    assert result.tokens_equal + result.ties == result.num_tokens == 4 * 48 + 160
    assert result.max_abs_diff < result.tolerance
    assert (result.engine, result.versions["sgate-serve"]) == (engine, "0.1.0")


def test_auto_takes_the_graph_where_there_is_one(folders: dict[str, Path]) -> None:
    assert verify(options(folders, "auto")).engine == "onnx"


@pytest.mark.parametrize("layer", [0, 2])
def test_tampered_weight_names_its_layer(folders: dict[str, Path], layer: int) -> None:
    name = f"model.layers.{layer}.mlp.down_proj.weight"
    tamper(folders["out"], name)
    result = verify(options(folders, "torch"))
    assert not result.passed
    assert result.difference == f"first differing layer: {layer} (tensor {name})"


@pytest.mark.parametrize("layer", [0, 2])
def test_without_a_plan_the_residual_stream_is_bisected(
    folders: dict[str, Path], layer: int
) -> None:
    (folders["out"] / PLAN_FILE).unlink()
    tamper(folders["out"], f"model.layers.{layer}.mlp.down_proj.weight")
    result = verify(options(folders, "torch"))
    assert result.tensors_equal is None
    assert result.difference is not None
    assert result.difference.startswith(f"first differing layer: {layer}, by ")


def test_change_too_small_for_the_logits_is_still_found(folders: dict[str, Path]) -> None:
    tamper(folders["out"], "model.embed_tokens.weight", amount=1e-7)
    result = verify(options(folders, "torch"))
    assert result.max_abs_diff < result.tolerance
    assert result.difference == "outside the layers: tensor model.embed_tokens.weight"


def test_tampered_norm_and_head_lie_after_the_layers(folders: dict[str, Path]) -> None:
    (folders["out"] / PLAN_FILE).unlink()
    tamper(folders["out"], "model.norm.weight")
    result = verify(options(folders, "torch"))
    assert result.difference == "after the last layer: the final norm or the head"


def test_tampered_graph_weights_name_the_layer(folders: dict[str, Path]) -> None:
    other = save(dense_llama(seed=9), folders["base"].parent / "other")
    gates = write_gates(
        other, folders["base"].parent / "g9", **random_gates(other, seed=4, closed=0.4)
    )
    target = folders["base"].parent / "other-out"
    convert(ConvertOptions(str(other.folder), target, gates, ("hf", "onnx")))
    own, data = folders["out"] / "onnx", (target / "onnx" / "model.onnx.data").read_bytes()
    (own / "model.onnx.data").write_bytes(data)
    result = verify(options(folders, "onnx"))
    assert not result.passed and result.num_tokens == 0 and result.difference is not None
    assert "model.onnx.data was edited or damaged after it" in result.difference
    # As a wrong converter would write it, with a record that fits.
    graph = (own / "model.onnx").read_bytes()
    recorded = str(stored_text(graph, META_WEIGHTS_DIGEST)).encode()
    found = hashlib.sha256(data).hexdigest().encode()
    (own / "model.onnx").write_bytes(graph.replace(recorded, found))
    result = verify(options(folders, "onnx"))
    assert not result.passed and result.tensors_equal is True
    assert result.difference is not None
    assert result.difference.startswith("first differing layer: 0, by ")


def test_bf16_conversion_is_compared_with_weights_rounded_alike(folders: dict[str, Path]) -> None:
    out = folders["base"].parent / "bf16"
    convert(ConvertOptions(str(folders["base"]), out, folders["gates"], precision="bf16"))
    result = verify(options(folders | {"bf16": out}, "torch", "bf16"))
    assert result.passed and result.tensors_equal is True


def test_tensors_of_several_dtypes_keep_theirs(tmp_path: Path) -> None:
    model = dense_llama().to(torch.bfloat16)
    model.model.norm.float()
    base = save(model, tmp_path / "base")
    gates = write_gates(base, tmp_path / "gates", **random_gates(base, seed=4, closed=0.4))
    convert(ConvertOptions(str(base.folder), tmp_path / "out", gates))
    tensors = Checkpoint.open(tmp_path / "out").tensors
    assert tensors["model.norm.weight"].dtype == "F32"
    assert tensors["model.embed_tokens.weight"].dtype == "BF16"
    assert verify(VerifyOptions(str(base.folder), str(tmp_path / "out"), gates, "torch")).passed


def test_prompts_are_seeded(folders: dict[str, Path]) -> None:
    base = Checkpoint.open(folders["base"])
    first, again = (random_prompts(options(folders, "torch"), base, "torch") for _ in range(2))
    assert all((a.tokens == b.tokens).all() for a, b in zip(first, again, strict=True))


def test_folders_that_cannot_belong_together(folders: dict[str, Path], tmp_path: Path) -> None:
    other = save(dense_llama(vocab_size=64), tmp_path / "vocab")
    with pytest.raises(CheckpointError, match=r"is not a conversion .* they differ in vocab_size"):
        verify(VerifyOptions(str(folders["base"]), str(other.folder), folders["gates"]))
    with pytest.raises(EngineError, match="unknown engine 'tgi'; use one of: onnx, torch, vllm"):
        verify(options(folders, "tgi"))


def test_certificate_and_card_are_replaced_whole(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the hub's cache both are links to blobs that other snapshots may share."""
    out, blobs = folders["out"], folders["out"].parent / "blobs"
    blobs.mkdir()
    result = verify(options(folders, "torch"))
    names = (CERTIFICATE_FILE, CARD_FILE)
    (out / CERTIFICATE_FILE).write_text("old")
    before = {name: (out / name).read_text() for name in names}
    for name in names:
        (out / name).rename(blobs / name)
        (out / name).symlink_to(blobs / name)
    (blobs / CARD_FILE).chmod(0o640)
    result.write(out)
    assert {name: (blobs / name).read_text() for name in names} == before
    assert not any((out / name).is_symlink() for name in names)
    assert (out / CARD_FILE).stat().st_mode & 0o777 == 0o640
    written = {name: (out / name).read_text() for name in names}
    assert written[CERTIFICATE_FILE] != "old" and "- verified" in written[CARD_FILE]
    listed = sorted(out.iterdir())

    def interrupted(path: Path, text: str, encoding: str) -> int:
        path.write_bytes(text.encode(encoding)[:9])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        result.write(out)
    assert {name: (out / name).read_text() for name in names} == written
    assert sorted(out.iterdir()) == listed


def test_certificate_is_json(folders: dict[str, Path]) -> None:
    value = json.loads(json.dumps(verify(options(folders, "torch")).to_json()))
    assert value["passed"] is True and value["seed"] == 0


def test_graph_of_other_weights_is_refused(folders: dict[str, Path]) -> None:
    graph = folders["out"] / "onnx" / "model.onnx"
    fingerprint = Checkpoint.open(folders["out"]).fingerprint.encode()
    graph.write_bytes(graph.read_bytes().replace(fingerprint, b"0" * len(fingerprint)))
    with pytest.raises(CheckpointError, match="was built from other weights than"):
        verify(options(folders, "onnx"))


@pytest.mark.parametrize(
    "change",
    [
        config(eos_token_id=9),
        companion("generation_config.json", '{"eos_token_id": 9}'),
        companion("tokenizer.json", "{}"),
        companion("chat_template.jinja", "x"),
        companion("modules.json", "[]"),
        graph_attribute("SkipSimplifiedLayerNormalization", "epsilon", 1e-7),
        graph_weight("embed_tokens", 0),
        lambda folder: shutil.rmtree(folder / "onnx"),
        no_plan,
    ],
    ids=[
        "end",
        "generation",
        "tokenizer",
        "template",
        "pooling",
        "node",
        "weight",
        "graph",
        "plan",
    ],
)
def test_an_edit_of_anything_certified_shows(folders: dict[str, Path], change: Change) -> None:
    """None of these changes the digest of the model."""
    verify(options(folders, "torch")).write(folders["out"])
    digest = Checkpoint.open(folders["out"]).digest
    (folders["out"] / "notes.md").write_text("of no effect")
    assert Inspection.of(folders["out"]).certificate_is_current is True
    change(folders["out"])
    assert Checkpoint.open(folders["out"]).digest == digest
    assert Inspection.of(folders["out"]).certificate_is_current is False


def test_certificates_of_older_releases_count_as_current(folders: dict[str, Path]) -> None:
    verify(options(folders, "torch")).write(folders["out"])
    path = folders["out"] / CERTIFICATE_FILE
    stored = json.loads(path.read_text())
    new = {"model_digest", "files_digest", "base_fingerprint", "base_digest"}
    path.write_text(json.dumps({key: stored[key] for key in stored if key not in new}))
    companion("generation_config.json", "{}")(folders["out"])
    assert Inspection.of(folders["out"]).certificate_is_current is True
    path.write_text(json.dumps(stored | {"base_fingerprint": 7}))
    with pytest.raises(CheckpointError, match="base_fingerprint must be"):
        Inspection.of(folders["out"])


def test_an_edit_after_the_proof_or_the_conversion_shows(folders: dict[str, Path]) -> None:
    verify(options(folders, "torch")).write(folders["out"])
    proven = Inspection.of(folders["out"])
    assert proven.to_json()["certificate_is_current"] is True
    base = Checkpoint.open(folders["base"])
    line = list(proven.lines())[-1]
    assert line.startswith("verified on torch") and f"against base {base.fingerprint[:12]}…" in line
    assert proven.certificate is not None and proven.certificate["base_digest"] == base.digest
    # Neither edit is among the bytes that a fingerprint covers.
    for name in ("out", "base"):
        path = folders[name] / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))
    edited = Inspection.of(folders["out"])
    assert edited.to_json()["certificate_is_current"] is False
    assert list(edited.lines())[-1].startswith("edited since then: config.json, weights, tokenizer")
    with pytest.raises(GatesError, match="were edited after these gates were trained"):
        verify(options(folders, "torch"))
    result = verify(VerifyOptions(str(folders["base"]), str(folders["out"]), engine="torch"))
    assert not result.passed
    assert "was made before config.json or weights of" in "\n".join(result.lines())
