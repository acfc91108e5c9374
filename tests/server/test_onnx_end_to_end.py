"""The server on the real engine: a tiny random Llama, converted, behind the OpenAI SDK."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from converters.to_onnx import write_onnx
from sgate_serve.engines import load_engine
from sgate_serve.engines.scheduler import SlotOptions
from sgate_serve.server import LoadedModel
from tests.server.live import serving, wait_until
from tests.small_llama import dense_llama, reference_greedy, save
from tests.text_model import BOS, CHAT_TEMPLATE, write_tokenizer

PROMPTS = ["the cat sat", "🚀 座った", "a gate that is closed lets nothing through"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = write_tokenizer(folder, chat_template=CHAT_TEMPLATE)
    checkpoint = save(dense_llama(vocab_size=tokenizer.get_vocab_size()), folder)
    (folder / "onnx").mkdir()
    write_onnx(checkpoint, folder / "onnx")
    return folder


@pytest.fixture(scope="module")
def openai_client(folder: Path) -> Iterator[OpenAI]:
    def load() -> LoadedModel:
        engine = load_engine("onnx", folder / "onnx", SlotOptions(slots=2, threads=1))
        return LoadedModel.from_folder(engine, folder)

    with serving(load) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        yield OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)


def test_greedy_text_is_the_references(openai_client: OpenAI, folder: Path) -> None:
    [model] = openai_client.models.list().data
    assert model.id == str(folder)
    answer = openai_client.completions.create(
        model=folder.name,
        prompt=PROMPTS,
        max_tokens=12,
        temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    loaded = LoadedModel.from_folder(load_engine("onnx", folder / "onnx"), folder)
    codec = loaded.require_codec("prompt")
    reference = dense_llama(vocab_size=loaded.engine.vocab_size)
    for prompt, choice in zip(PROMPTS, answer.choices, strict=True):
        ids = codec.encode(prompt)
        expected = reference_greedy(reference, ids, 12)
        assert choice.model_dump()["token_ids"] == expected
        assert prompt + choice.text == codec.decode([*ids, *expected])


def test_sampled_chat_streams_and_repeats_with_its_seed(
    openai_client: OpenAI, folder: Path
) -> None:
    def text(seed: int) -> str:
        chunks = openai_client.chat.completions.create(
            model=folder.name,
            messages=[{"role": "user", "content": "the cat"}],
            max_completion_tokens=20,
            seed=seed,
            stream=True,
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    assert text(-5) == text(-5) != text(6)
    assert BOS not in text(-5)
