"""The prompts of a verification: how far they reach, pairs, padding ids, and texts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.onnx.engine import DEFAULT_PREFILL_CHUNK
from sgate_serve.errors import EngineError
from sgate_serve.verify.prompts import (
    DEFAULT_TOKENS,
    PAST_WINDOW,
    REACH,
    TEXT_PROMPTS,
    TEXT_TOKENS,
    longest_prompt,
    make_prompts,
    random_prompts,
    text_prompts,
    unreached,
)
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.zoo import ZOO, Variant, build
from tests.text_model import write_tokenizer

OPTIONS = VerifyOptions("base", "out")


def model_of(variant: Variant, root: Path, **fields: Any) -> Checkpoint:
    build(variant, seed=0, **fields).save_pretrained(root / "model")
    return Checkpoint.open(root / "model")


@pytest.mark.parametrize(
    ("fields", "longest", "missed"),
    [
        ({"sliding_window": 100}, REACH, ["outputs after 160 tokens; the model reads up to 2000"]),
        ({"sliding_window": 300}, 300 + PAST_WINDOW, ["outputs after 316 tokens; the model reads"]),
        (
            {"sliding_window": 1500},
            REACH,
            ["sliding window of 1500 tokens (--prompt-tokens 1516)", "outputs after 160 tokens"],
        ),
        ({"sliding_window": 100, "max_position_embeddings": 120}, 120, []),
    ],
)
def test_the_long_prompt_reaches_past_chunks_and_windows(
    tmp_path: Path, fields: dict[str, Any], longest: int, missed: list[str]
) -> None:
    assert REACH > DEFAULT_PREFILL_CHUNK
    model = model_of(ZOO["mistral"][1], tmp_path, **{"max_position_embeddings": 2000} | fields)
    prompts = random_prompts(OPTIONS, model, "onnx")
    assert [len(prompt.tokens) for prompt in prompts] == [48] * 4 + [longest]
    found = list(unreached(model.spec, prompts))
    assert len(found) == len(missed)
    assert all(words in line for words, line in zip(missed, found, strict=True))


def test_a_long_prompt_that_is_asked_for_is_the_longest(tmp_path: Path) -> None:
    model = model_of(ZOO["llama"][0], tmp_path, max_position_embeddings=300)
    options = VerifyOptions("base", "out", num_prompts=2, prompt_tokens=300)
    assert [len(p.tokens) for p in random_prompts(options, model, "torch")] == [300, 300]


@pytest.mark.parametrize(("engine", "most"), [("onnx", 30), ("torch", 30), ("vllm", 29)])
def test_prompts_longer_than_the_model_reads_are_refused(
    tmp_path: Path, engine: str, most: int
) -> None:
    model = model_of(ZOO["llama"][0], tmp_path, max_position_embeddings=30)
    for tokens in (most, DEFAULT_TOKENS):
        options = VerifyOptions("base", "out", num_prompts=2, prompt_tokens=tokens)
        assert [len(p.tokens) for p in random_prompts(options, model, engine)] == [most, most]
    said = f"--prompt-tokens {most + 1} exceeds the {most} positions of .* on {engine}; give at mo"
    with pytest.raises(EngineError, match=said):
        random_prompts(replace(options, prompt_tokens=most + 1), model, engine)


def test_engines_end_prompts_where_they_must() -> None:
    variants = ZOO["llama"][0], ZOO["phi3"][1]
    llama, phi = (ModelSpec.from_config(build(v, 0).config.to_dict(), "c") for v in variants)
    assert [longest_prompt(engine, llama) for engine in ("onnx", "torch", "vllm")] == [64, 64, 63]
    # A graph of longrope ends at the original length.
    assert [longest_prompt(engine, phi) for engine in ("onnx", "torch", "vllm")] == [6, 64, 63]


def test_vocabularies_bound_the_long_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(ZOO["llama"][0], tmp_path)
    monkeypatch.setattr("sgate_serve.verify.prompts.MAX_LOGITS", 97 * 50)
    lengths = [len(prompt.tokens) for prompt in random_prompts(OPTIONS, model, "onnx")]
    assert lengths == [48] * 4 + [50]


def test_every_second_prompt_is_a_pair_where_there_are_segments(tmp_path: Path) -> None:
    prompts = random_prompts(OPTIONS, model_of(ZOO["bert"][1], tmp_path), "onnx")
    assert [prompt.types is None for prompt in prompts] == [True, False, True, False, True]
    assert prompts[1].types is not None
    assert prompts[1].types.tolist() == [0] * 24 + [1] * 24


@pytest.mark.parametrize(
    ("variant", "engine", "is_put"),
    [
        (ZOO["roberta"][1], "onnx", True),
        (ZOO["llama"][2], "torch", True),
        # vLLM's own models count padding, and classify by the very last token.
        (ZOO["roberta"][1], "vllm", False),
        (ZOO["bert"][1], "onnx", False),
        (ZOO["llama"][0], "onnx", False),
    ],
    ids=str,
)
def test_padding_ids_are_among_the_tokens_where_they_matter(
    tmp_path: Path, variant: Variant, engine: str, is_put: bool
) -> None:
    prompts = random_prompts(OPTIONS, model_of(variant, tmp_path), engine)
    padding = variant.config["pad_token_id"]
    found = prompts[0].tokens[24], prompts[-1].tokens[-1]
    assert (found == (padding, padding)) is is_put


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (replace(OPTIONS, num_prompts=0), "--num-prompts 0"),
        (replace(OPTIONS, prompt_tokens=-1), "--prompt-tokens -1"),
    ],
)
def test_numbers_below_1_are_refused(options: VerifyOptions, flag: str) -> None:
    with pytest.raises(EngineError, match=f"{flag}: give a whole number of at least 1"):
        options.check()
    with pytest.raises(EngineError, match=f"{flag}: give a whole number of at least 1"):
        verify(options)


def text_file(root: Path, words: int) -> Path:
    path = root / "text.txt"
    path.write_text("the cat sat on the mat and the dog sat on the log\n\n" * (words // 12))
    return path


def test_texts_of_a_language_model_are_blocks_of_the_running_text(tmp_path: Path) -> None:
    fields = {"vocab_size": 400, "max_position_embeddings": 2000}
    model = model_of(ZOO["llama"][0], tmp_path, **fields)
    write_tokenizer(model.folder)
    data = text_file(tmp_path, 60_000)
    found = make_prompts(VerifyOptions("b", str(model.folder), data=data), model, model)
    assert [len(prompt.tokens) for prompt in found.text] == [TEXT_TOKENS] * TEXT_PROMPTS
    assert (found.data, len(found.random)) == ("text.txt", 5)
    # Rounding is measured on text alone.
    assert found.measures(found.text[0]) and not found.measures(found.random[0])
    short = text_prompts(text_file(tmp_path, 24), model, "onnx")
    assert len(short) == 1 and len(short[0].tokens) < TEXT_TOKENS


def test_texts_of_a_classifier_are_cut_at_its_positions(tmp_path: Path) -> None:
    model = model_of(ZOO["bert"][1], tmp_path, vocab_size=400)
    write_tokenizer(model.folder)
    found = text_prompts(text_file(tmp_path, 12_000), model, "onnx")
    assert {len(prompt.tokens) for prompt in found} == {64} and len(found) <= TEXT_PROMPTS


@pytest.mark.parametrize(("documents", "reached"), [(40, 37), (400, 375), (4000, 3750)])
def test_texts_are_of_the_whole_file(tmp_path: Path, documents: int, reached: int) -> None:
    """The last documents may be of another kind than the first."""
    model = model_of(ZOO["bert"][1], tmp_path, vocab_size=400)
    write_tokenizer(model.folder)
    texts = ["the cat sat" if index < reached else "a dog" for index in range(documents)]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = text_prompts(data, model, "onnx")
    assert len(found) == TEXT_PROMPTS
    assert len({tuple(prompt.tokens.tolist()) for prompt in found}) == 2


def test_texts_need_the_models_own_tokenizer(tmp_path: Path) -> None:
    model, data = model_of(ZOO["llama"][0], tmp_path), text_file(tmp_path, 6000)
    with pytest.raises(EngineError, match=r"tokenizer\.json is missing, so texts cannot be read"):
        text_prompts(data, model, "onnx")
    write_tokenizer(model.folder)
    with pytest.raises(EngineError, match="makes no tokens of this model of it; give text, and"):
        text_prompts(data, model, "onnx")
