"""Smaller sizes of a folder in vLLM: each equals its own masked dense model."""

from pathlib import Path
from typing import Any

import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.table import VLLM
from sgate_serve.loaders.sized_folder import open_size
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.commands.running import run
from tests.families.zoo import VARIANTS, build
from tests.ranked_gates import keeps_of, write_ranked_gates

pytestmark = pytest.mark.vllm

# Gated MLPs, fused linears, Conv1D, experts, rows that alternate by head, an encoder.
NAMES = (
    *("llama-biased-tied", "phi3-partial-rotary", "gpt2-tied", "qwen2_moe-shared"),
    *("gpt_neox-pythia", "bert-classifier"),
)


def converted(name: str, root: Path) -> tuple[ConvertOptions, float]:
    """Convert a random model to two sizes; return the smaller one's fraction."""
    variant = next(variant for variant in VARIANTS if str(variant) == name)
    build(variant, 0).save_pretrained(root / "base")
    gates = write_ranked_gates(Checkpoint.open(root / "base"), root / "gates", 0.1)
    keeps = keeps_of(root / "base", gates, 0.6)
    options = ConvertOptions(str(root / "base"), root / "out", gates, sizes=keeps)
    convert(options)
    return options, keeps[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_size_verifies(name: str, tmp_path: Path) -> None:
    options, keep = converted(name, tmp_path)
    given = VerifyOptions(options.checkpoint, str(options.out), options.gates, VLLM, keep=keep)
    result = verify(given)
    assert result.passed and result.tensors_equal and result.num_tokens, result.difference


def test_vllms_server_gets_the_folder_of_the_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, keep = converted(NAMES[0], tmp_path)
    given: list[Any] = []

    def serve(folder: Path, _: Any, names: tuple[str, ...], __: Any) -> None:
        given.extend((folder, names[0]))
        raise SystemExit(0)

    monkeypatch.setattr("sgate_serve.engines.vllm.server.serve", serve)
    words = ("serve", options.out, "--keep", f"{keep}", "--engine", VLLM)
    assert run(capsys, *words)[0] == 0
    assert given == [open_size(options.out, keep).folder, "out"]
