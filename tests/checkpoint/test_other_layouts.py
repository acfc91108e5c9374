"""Folders that users really have: each refusal says what is there and the line that mends it."""

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sgate_serve.checkpoint.location import find_folder
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import CheckpointError, OutputError
from tests.small_llama import dense_llama

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    dense_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    return message


def run_remedy(message: str) -> None:
    """Run the Python line that a message advises."""
    (line,) = re.findall(r'python -c "([^"]+)"', message)
    exec(line, {})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(folder: Path, *names: str) -> None:
    tensors = {k: v for k, v in load_file(folder / WEIGHTS).items() if k not in names}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(
            torch.arange(3, 20)[None]
        ).logits
    return found


def rename_weights(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS).replace(folder / name)


def leave_staging(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / ".sgate-incomplete").mkdir()


WITHOUT_WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "variant": (rename_weights("model.fp16.safetensors"), "rename it to model.safetensors"),
    "shard": (rename_weights("model-00001-of-00002.safetensors"), f"download or copy {INDEX} too"),
    "gguf": (rename_weights("x.gguf"), r"GGUF is not read here; `sgate convert .*x\.gguf --out"),
    "tf": (rename_weights("tf_model.h5"), r"tf_model\.h5 is not read; load it in transformers 4"),
    "nothing": (lambda folder: (folder / WEIGHTS).unlink(), "download or copy the weights too"),
    "killed": (leave_staging, "was interrupted; run it again"),
}


@pytest.mark.parametrize("case", WITHOUT_WEIGHTS)
def test_a_folder_without_safetensors_says_which_weights_it_has(base: Path, case: str) -> None:
    change, expected = WITHOUT_WEIGHTS[case]
    change(base)
    message = refusal(base)
    assert message.startswith(f"{base} holds neither {WEIGHTS} nor {INDEX}: ")
    assert re.search(expected, message), message


def test_a_pickle_is_written_as_safetensors_by_the_line_in_the_message(base: Path) -> None:
    tensors = load_file(base / WEIGHTS)
    torch.save(tensors, base / "pytorch_model.bin")
    (base / WEIGHTS).unlink()
    message = refusal(base)
    assert "a pickle (pytorch_model.bin) may run code and is not read" in message
    run_remedy(message)
    assert Checkpoint.open(base).tensors.keys() == tensors.keys()
    assert torch.equal(load_file(base / WEIGHTS)["lm_head.weight"], tensors["lm_head.weight"])


def test_an_adapter_is_merged_by_the_line_in_the_message(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained("adapter")
    message = refusal(Path("adapter"))
    assert f"adapter is a PEFT adapter (LORA of {base}); merge it first" in message
    run_remedy(message)
    merged = logits(Path("MERGED"))
    Checkpoint.open("MERGED")
    # transformers applies an adapter that is in the folder of its base.
    shutil.rmtree("MERGED")
    plain = logits(base)
    for file in Path("adapter").glob("adapter_*"):
        file.replace(base / file.name)
    torch.testing.assert_close(logits(base), merged, atol=1e-5, rtol=1e-5)
    assert (plain - merged).abs().max() > 0.1
    message = refusal(base)
    assert "which transformers would apply; merge it first: move adapter_config.json and" in message
    Path("ADAPTER").mkdir()
    for file in base.glob("adapter_*"):
        file.replace(Path("ADAPTER") / file.name)
    run_remedy(message)
    torch.testing.assert_close(logits(Path("MERGED")), merged, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_gates_is_sent_to_its_flag(base: Path, tmp_path: Path) -> None:
    adapter = json.dumps({"peft_type": "FINEGATES"})
    (base / "adapter_config.json").write_text(adapter)
    assert "move the adapter to a folder of its own and give that with --gates" in refusal(base)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "adapter_config.json").write_text(adapter)
    message = refusal(tmp_path / "alone")
    assert "give its base here, and the folder of the adapter with --gates" in message


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.gguf"], r"holds GGUF, which is not read here; .*a\.gguf --out NEW`"),
        (["gates.safetensors"], "is a gates folder; give their base here, and the gates with --ga"),
        (["params.json", "consolidated.00.pth"], "has the original layout of a Llama or Mistral"),
        (["model.onnx", "model.onnx.data"], "is a graph alone; give the model folder that it was"),
        (
            ["step-5/config.json", "1_Pooling/config.json"],
            "give one of the models inside .*ep-5$",
        ),
        ([], "is .* a model folder?"),
    ],
)
def test_a_folder_without_a_config_says_what_it_is(
    tmp_path: Path, files: list[str], expected: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"model_type": "llama"}' if "step" in name else "{}")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'config.json'} is missing: ")
    assert re.search(expected, message), message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.gguf", "is a GGUF file, which is not read here; `sgate convert "),
        ("gates.safetensors", "holds gates; give their base here, and the gates with --gates"),
        ("adapter_model.safetensors", "is an adapter; merge it first: python -c"),
        ("model.safetensors", "is a file; give the model folder that holds it, with config.json"),
    ],
)
def test_a_file_is_not_a_folder(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"{name} {re.escape(expected)}"):
        find_folder(tmp_path / name)
    (tmp_path / "config.json").touch()
    if name == WEIGHTS:
        with pytest.raises(CheckpointError, match=f"that holds it: {tmp_path}$"):
            find_folder(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", "gpt2: no such folder; on the hub it is openai-community/gpt2"),
        ("distilgpt2", "on the hub it is distilbert/distilgpt2"),
        ("bert-base-uncased", "on the hub it is google-bert/bert-base-uncased"),
        ("Llama-9", "Llama-9: no such folder; names on the hub are OWNER/NAME"),
        ("prunde", "prunde: no such folder; did you mean pruned?"),
        (
            "some/pruned",
            "some/pruned: no such folder here, and the hub did .*`hf download some",
        ),
        ("./some/where/else", "some/where/else: no such folder$"),
    ],
)
def test_a_name_that_is_nowhere_gets_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pruned").mkdir()
    with pytest.raises(CheckpointError, match=expected):
        find_folder(name)


@pytest.mark.parametrize(
    ("error", "kind", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left"), OutputError, "/cache/hub: No space left; free"),
        (PermissionError(errno.EACCES, "Denied", "/x/refs"), OutputError, "/x/refs: Denied; ch"),
        (ConnectionError(errno.ECONNREFUSED, "Refused"), CheckpointError, "hub did not answer"),
        (PermissionError(errno.EPERM, "Not permitted"), CheckpointError, "hub did not answer"),
        (OSError("offline"), CheckpointError, "the hub did not answer with it .offline."),
    ],
)
def test_a_full_disk_is_not_taken_for_a_missing_network(
    monkeypatch: pytest.MonkeyPatch, error: OSError, kind: type[Exception], expected: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/cache/hub")
    with pytest.raises(kind, match=expected) as caught:
        find_folder("some/model")
    assert ("or set HF_HOME to another folder" in str(caught.value)) is (kind is OutputError)


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_repository_of_pickles_gets_the_line_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sharded: bool
) -> None:
    """Pickles are not downloaded, so the folder alone does not show them."""
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    stored = {"pytorch_model.bin.index.json" if is_sharded else "pytorch_model.bin"}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_exists", lambda _, file: file in stored)
    with pytest.raises(CheckpointError) as caught:
        find_folder("some/model")
    said = str(caught.value)
    assert said.startswith("some/model: its weights are a pickle (pytorch_model.bin")
    assert "run `hf download some/model --local-dir DIR`, write them as safetensors once" in said
    assert "BertModel as M; M.from_pretrained('DIR').save_pretrained('DIR')" in said
    stored.clear()
    assert find_folder("some/model") == tmp_path
    monkeypatch.setattr("huggingface_hub.file_exists", lambda *_: 1 / 0)
    (tmp_path / WEIGHTS).touch()
    assert find_folder("some/model") == tmp_path


def test_a_single_file_wins_over_an_old_index(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = logits(base)
    dense_llama(seed=1).save_pretrained(base.with_name("old"), max_shard_size="20KB")
    for file in base.with_name("old").glob("model*"):
        file.replace(base / file.name)
    assert torch.equal(logits(base), expected)
    with caplog.at_level("WARNING"):
        checkpoint = Checkpoint.open(base)
    assert {info.file for info in checkpoint.tensors.values()} == {base / WEIGHTS}
    assert f"{base / INDEX} is ignored, as transformers does: {WEIGHTS} is there" in caplog.text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"transformers_weights": "x.safetensors"}, "rename the file that it names to model.safe"),
        ({"configuration_files": ["config.4.0.json"]}, "copy the file that is meant to config.j"),
        ({"compression_config": {"format": "pack"}}, "give the unquantized checkpoint"),
    ],
)
def test_keys_that_lead_elsewhere_are_refused(
    base: Path, change: dict[str, Any], expected: str
) -> None:
    edit_config(base, **change)
    (key,) = change
    assert re.search(rf"config.json: {key} .* is not followed; {expected}", refusal(base))


def test_remote_code_is_neither_run_nor_passed_on(base: Path, tmp_path: Path) -> None:
    from converters.convert import ConvertOptions, convert

    edit_config(base, auto_map={"AutoModelForCausalLM": "modeling.Custom"})
    convert(ConvertOptions(str(base), tmp_path / "out"))
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    torch.testing.assert_close(logits(tmp_path / "out"), logits(base))


MISSING: dict[str, tuple[dict[str, Any], str, str]] = {
    "head": (
        {},
        "lm_head.weight",
        'its embedding as head, write "tie_word_embeddings": true',
    ),
    "bias": (
        {"attention_bias": True},
        "model.norm.bias",
        'q_proj.bias is missing: config.json says attention_bias, .* write "attention_bias": false',
    ),
    "norm": ({}, "model.norm.weight", "random numbers; save or download the checkpoint again, c"),
    "classifier": (
        {"architectures": ["LlamaForSequenceClassification"]},
        "model.norm.bias",
        r'score.weight is missing: .* train one .* or write "architectures": \["LlamaModel"\]',
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_tensor_has_its_true_cause(base: Path, case: str) -> None:
    change, name, expected = MISSING[case]
    edit_config(base, **change)
    without(base, name)
    assert re.search(expected, refusal(base))


@pytest.mark.parametrize(
    ("rename", "expected"),
    [
        (
            lambda name: f"module.{name}",
            "none of the 30 tensors of a LlamaForCausalLM is there, ",
        ),
        (lambda name: name.replace(".weight", ".qweight"), "belongs to quantized weights; give th"),
        (
            lambda name: name.replace("up_proj.weight", "up_proj.gates_rows._gates_logits"),
            "_gates_logits is a gate; give the base here, and this folder with --gates",
        ),
    ],
    ids=["wrapped", "packed", "gates"],
)
def test_tensors_of_another_kind_are_named(
    base: Path, rename: Callable[[str], str], expected: str
) -> None:
    tensors = {rename(name): value for name, value in load_file(base / WEIGHTS).items()}
    save_file(tensors, base / WEIGHTS, {"format": "pt"})
    assert expected in refusal(base)
