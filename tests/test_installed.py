"""What a test of an engine does where the engine is missing: skip, and fail in CI."""

import sys

import pytest

from tests.installed import REQUIRED, require_engine


def test_missing_engine_skips_and_fails_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="engine vllm needs vllm"):
        require_engine("vllm")
    monkeypatch.setenv(REQUIRED, "onnx torch vllm")
    with pytest.raises(pytest.fail.Exception, match=f"engine vllm needs vllm, and {REQUIRED} nam"):
        require_engine("vllm")


def test_installed_engine_is_imported() -> None:
    require_engine("onnx")
    assert "onnxruntime" in sys.modules
