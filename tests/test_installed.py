"""`require_engine`: a missing engine skips a test, and fails it where CI requires the engine."""

import sys

import pytest

from tests.installed import REQUIRED, require_engine


def test_a_missing_engine_skips_or_fails_if_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="engine vllm needs vllm"):
        require_engine("vllm")
    monkeypatch.setenv(REQUIRED, "onnx torch vllm")
    with pytest.raises(pytest.fail.Exception, match=f"engine vllm needs vllm, and {REQUIRED} nam"):
        require_engine("vllm")


def test_an_installed_engine_is_imported() -> None:
    require_engine("onnx")
    assert "onnxruntime" in sys.modules
