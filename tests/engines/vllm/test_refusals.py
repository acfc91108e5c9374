"""What vLLM or we refuse, each with a reason that names it."""

import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.table import load_engine
from sgate_serve.errors import CheckpointError, EngineError
from sgate_serve.server.server_options import ServerOptions
from tests.engines.vllm.start import vllm_engine
from tests.families.test_equivalence import converted
from tests.families.zoo import ZOO, build

pytestmark = pytest.mark.vllm

DEFAULTS = ServerOptions()


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return converted(ZOO["llama"][0], tmp_path, skip=0, index_price=0)["out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--enable-lora"], "vLLM refuses .* does not support LoRA"),
        # vLLM itself refuses fp8 with other dtypes.
        (
            ["--quantization=fp8", "--dtype=bfloat16"],
            "--quantization fp8 is not supported for pruned models",
        ),
        (["--frobnicate=3"], "vLLM: unrecognized arguments: --frobnicate=3; `vllm serve --help"),
        (["--max-model-len=65"], "vLLM refuses .*65"),
        (
            ["--pipeline-parallel-size=2", "--distributed-executor-backend=uni"],
            "vLLM refuses .*Pipeline Parallelism without",
        ),
        (["--no-enforce-eager", "-cc.backend=eager"], "all custom ops on, vLLM 0.32 computes NaN"),
    ],
)
def test_settings_that_a_pruned_model_cannot_have(
    words: list[str], message: str, llama: Path
) -> None:
    with pytest.raises(EngineError, match=f"(?s){message}"), vllm_engine(llama, words):
        pass


def test_gemma_in_float16(tmp_path: Path) -> None:
    folder = converted(ZOO["gemma2"][0], tmp_path, skip=0)["out"]
    message = "family gemma2 overflows in float16; serve it with --dtype bfloat16"
    with pytest.raises(EngineError, match=message), vllm_engine(folder, ["--dtype=float16"]):
        pass


def test_shared_keys(tmp_path: Path) -> None:
    variant = next(one for one in ZOO["gemma4_text"] if one.name == "shared-keys-inputs")
    folder = converted(variant, tmp_path, skip=0)["out"]
    message = "layers without keys of their own .num_kv_shared_layers., and the plugin has none"
    with pytest.raises(EngineError, match=message), vllm_engine(folder, []):
        pass


@pytest.mark.parametrize("name", ["mlp.up_proj.weight", "input_layernorm.weight", "norm.weight"])
def test_a_missing_tensor_is_named(name: str, llama: Path) -> None:
    path = llama / "model.safetensors"
    weights = load_file(path)
    lost = max(key for key in weights if key.endswith(name))
    del weights[lost]
    save_file(weights, path, metadata={"format": "pt"})
    message = re.escape(lost.removesuffix(".weight"))
    with pytest.raises(CheckpointError, match=message), vllm_engine(llama):
        pass


def test_a_model_of_transformers_classes_is_not_compared(tmp_path: Path) -> None:
    build(ZOO["gpt_neox"][0], 0).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"by transformers' own classes.*choose another engine"):
        load_engine("vllm", tmp_path, SlotOptions())


def test_threads_are_not_vllms(llama: Path) -> None:
    with pytest.raises(EngineError, match="vLLM has no engine option threads; set OMP_NUM_THREADS"):
        load_engine("vllm", llama, SlotOptions(threads=1))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (replace(DEFAULTS, grace_seconds=5.0), "--grace-seconds"),
        (replace(DEFAULTS, max_body_bytes=9), "--max-body-bytes"),
    ],
)
def test_options_that_vllms_server_lacks(options: ServerOptions, flag: str, llama: Path) -> None:
    from sgate_serve.engines.vllm.server import command_line

    with pytest.raises(EngineError, match=f"{flag} is not an option of vLLM's server; give vLLM's"):
        command_line(llama, options, ["out"], [])


def test_the_command_serves_under_both_names_and_hides_the_key(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from sgate_serve.engines.vllm.server import command_line

    options = ServerOptions(host="0.0.0.0", port=81, api_key="hidden")
    with caplog.at_level(logging.WARNING):
        command = command_line(llama, options, ["where", "some/where"], ["--dtype", "float32"])
    words = " ".join(command)
    assert "--host 0.0.0.0 --port 81 --served-model-name where some/where " in words
    assert "hidden" not in words
    assert words.endswith("--skip-tokenizer-init --dtype float32")
    assert "has no tokenizer: only prompts of token ids work" in caplog.text
    (llama / "tokenizer.json").write_text("{}")
    assert "--skip-tokenizer-init" not in command_line(llama, options, ["a"], [])


def test_the_key_goes_by_the_environment(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sgate_serve.engines.vllm import server

    started: list[Any] = []
    for name in ("VLLM_API_KEY", "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.setenv(name, "before")
    monkeypatch.setattr(os, "execv", lambda *call: started.append(call))
    # Never returns where exec is real.
    become: Callable[..., object] = server.serve
    become(llama, ServerOptions(api_key="hidden"), "out", [])
    ((program, command),) = started
    assert program == command[0]
    assert "hidden" not in command
    assert os.environ["VLLM_API_KEY"] == "hidden"
