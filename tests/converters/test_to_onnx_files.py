"""What `write_onnx` leaves on disk, how much memory it takes, and what it refuses."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from converters.to_onnx import write_onnx
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import EngineError
from tests.small_llama import dense_llama, save


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    checkpoint = save(dense_llama(), tmp_path / "m")
    write_onnx(checkpoint, tmp_path / "onnx")
    with pytest.raises(EngineError, match=r"model\.onnx exists already; remove it"):
        write_onnx(checkpoint, tmp_path / "onnx")


def test_unknown_activation_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    checkpoint = save(dense_llama(hidden_act="mish"), tmp_path / "m")
    with pytest.raises(EngineError, match=r"no operator for hidden_act 'mish'.*--engine torch"):
        write_onnx(checkpoint, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save(dense_llama(), tmp_path / "m")

    def read(self: Checkpoint, name: str) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Checkpoint, "read", read)
    with pytest.raises(OSError, match="the disk is gone"):
        write_onnx(checkpoint, tmp_path / "onnx")
    assert list((tmp_path / "onnx").iterdir()) == []


def test_finished_folder_holds_graph_and_weights_only(tmp_path: Path) -> None:
    write_onnx(save(dense_llama(), tmp_path / "m"), tmp_path / "onnx")
    names = sorted(path.name for path in (tmp_path / "onnx").iterdir())
    assert names == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "onnx" / "model.onnx").stat().st_size < 50_000


def test_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = save(dense_llama(), tmp_path / "m")
    for folder in ("a", "b"):
        write_onnx(checkpoint, tmp_path / folder)
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_weights_are_streamed(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 1024, "num_hidden_layers": 12}
    checkpoint = save(dense_llama(**sizes), tmp_path / "m")
    tracemalloc.start()
    write_onnx(checkpoint, tmp_path / "onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = 2 * 1024 * 128 * 4
    written = (tmp_path / "onnx" / "model.onnx.data").stat().st_size
    assert peak < 5 * largest < written / 3


def test_needs_neither_torch_nor_transformers_nor_engines() -> None:
    code = (
        "import sys, converters.to_onnx; "
        "found = [m for m in ('torch', 'transformers', 'sgate_serve.engines', 'onnxruntime') "
        "if m in sys.modules]; assert not found, found"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
