"""The server on the real engine: a tiny random Llama, converted, behind the OpenAI SDK."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from openai import OpenAI

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.commands.serve import generator_of
from sgate_serve.engines.table import load_engine
from sgate_serve.server import ServedModel
from tests.server.live import serving, wait_until
from tests.server.onnx_server import serving_folder, tiny_folder
from tests.server.test_openai_sdk import LENIENT, OPTIONS
from tests.small_llama import Kept, dense_llama, reference_greedy, reference_logits, save_pruned
from tests.text_model import BOS, write_tokenizer

PROMPTS = ["the cat sat", "🚀 座った", "a gate that is closed lets nothing through"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def openai_client(folder: Path) -> Iterator[OpenAI]:
    with serving_folder(folder, slots=2) as client:
        yield OpenAI(base_url=f"{client.base_url}/v1", **OPTIONS)


def test_greedy_text_is_the_references(openai_client: OpenAI, folder: Path) -> None:
    [model] = openai_client.models.list().data
    assert model.id == folder.name
    answer = openai_client.completions.create(
        model=folder.name,
        prompt=PROMPTS,
        max_tokens=12,
        temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    loaded = ServedModel.from_folder(load_engine("onnx", folder / "onnx"), folder)
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


def test_parameters_act_through_the_sdk(openai_client: OpenAI, folder: Path) -> None:
    def tokens(extra: dict[str, object] | None = None, **options: Any) -> list[list[int]]:
        answer = openai_client.completions.create(
            model=folder.name,
            prompt=PROMPTS[0],
            max_tokens=12,
            extra_body={"return_token_ids": True, "ignore_eos": True, **(extra or {})},
            **options,
        )
        return [choice.model_dump()["token_ids"] for choice in answer.choices]

    [greedy] = tokens(temperature=0)
    [banned] = tokens(temperature=0, logit_bias={str(greedy[0]): -100})
    assert banned[0] != greedy[0]
    assert tokens(temperature=0, logit_bias={"7": 100}) == [[7] * 12]
    assert len(set(tokens({"repetition_penalty": 100}, temperature=0)[0])) == 12
    [spread] = tokens(temperature=0, frequency_penalty=2, logit_bias={"7": 10})
    assert 0 < spread.count(7) < 12
    assert tokens({"top_k": 1}, seed=1) == tokens({"min_p": 1.0}, seed=1) == [greedy]
    first, second = tokens(seed=3, n=2)
    assert first != second
    assert tokens({"stop_token_ids": [7]}, temperature=0, logit_bias={"7": 100}) == [[7]]
    [late] = tokens({"stop_token_ids": [7], "min_tokens": 4}, temperature=0, logit_bias={"7": 100})
    assert len(late) == 5 and late.index(7) == 4


def test_echoed_scores_are_the_references(openai_client: OpenAI, folder: Path) -> None:
    loaded = ServedModel.from_folder(load_engine("onnx", folder / "onnx"), folder)
    codec = loaded.require_codec("prompt")
    reference = dense_llama(vocab_size=loaded.engine.vocab_size)
    prompts = [list(codec.encode(prompt)) for prompt in PROMPTS]
    lenient = OpenAI(base_url=openai_client.base_url, **LENIENT)
    for max_tokens in (0, 1):
        answer = lenient.completions.create(
            model=folder.name,
            prompt=prompts,
            max_tokens=max_tokens,
            temperature=0,
            echo=True,
            logprobs=5,
        )
        for ids, choice in zip(prompts, answer.choices, strict=True):
            assert choice.logprobs is not None
            logits = torch.tensor(reference_logits(reference, np.array(ids))).double()
            scores = logits.log_softmax(-1)
            expected = [float(scores[at, token]) for at, token in enumerate(ids[1:])]
            expected += [float(scores[-1].max())] * max_tokens
            first, *found = choice.logprobs.model_dump()["token_logprobs"]
            assert first is None
            assert found == pytest.approx(expected, abs=1e-4)
            assert choice.logprobs.top_logprobs is not None
            for best, row in zip(choice.logprobs.top_logprobs[1:], scores, strict=False):
                assert max(best.values()) == pytest.approx(float(row.max()), abs=1e-4)


def test_chat_scores_stream_through_the_sdk(openai_client: OpenAI, folder: Path) -> None:
    chunks = openai_client.chat.completions.create(
        model=folder.name,
        messages=[{"role": "user", "content": "the cat"}],
        max_completion_tokens=6,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    scores = [chunk.choices[0].logprobs for chunk in chunks]
    entries = [entry for own in scores if own for entry in own.content or ()]
    assert len(entries) == 6
    for entry in entries:
        assert entry.logprob == entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob


def test_turns_of_a_chat_are_read_once(folder: Path) -> None:
    with serving_folder(folder, slots=2) as client:
        messages = [{"role": "user", "content": "the cat sat on the mat"}]
        bodies, usages = [], []
        for _ in range(3):
            body = {
                "model": folder.name,
                "messages": [*messages],
                "max_tokens": 6,
                "temperature": 0,
            }
            answer = client.post("/v1/chat/completions", json=body).json()
            bodies.append((body, answer["choices"]))
            usages.append(answer["usage"])
            messages += [answer["choices"][0]["message"], {"role": "user", "content": "and then"}]
        metrics = client.get("/metrics").text
    details = [usage.get("prompt_tokens_details", {}).get("cached_tokens", 0) for usage in usages]
    assert details[0] == 0
    for before, usage, cached in zip(usages, usages[1:], details[1:], strict=False):
        assert 0 < cached < usage["prompt_tokens"]
        # All of the turn before, up to where its answer is written as a message.
        assert cached >= before["prompt_tokens"] - 1
    label = f'{{model_name="{folder.name}"}}'
    assert f"vllm:prefix_cache_hits_total{label} {float(sum(details))}" in metrics
    looked_up = float(sum(usage["prompt_tokens"] for usage in usages))
    assert f"vllm:prefix_cache_queries_total{label} {looked_up}" in metrics
    for body, choices in bodies:
        with serving_folder(folder, slots=1) as client:
            alone = client.post("/v1/chat/completions", json=body).json()
        assert alone["choices"] == choices
        assert "prompt_tokens_details" not in alone["usage"]


def test_looking_tokens_up_changes_nothing_that_a_client_sees(folder: Path) -> None:
    with serving_folder(folder, slots=2) as client:

        def text(**own: Any) -> Any:
            body = {"prompt": "the cat sat. " * 3, "max_tokens": 40, "ignore_eos": True, **own}
            answer = client.post("/v1/completions", json=body).json()
            (choice,) = answer["choices"]
            return choice["text"], choice["finish_reason"], answer["usage"]["completion_tokens"]

        # Of two tokens both are right now and then.
        two = {"logit_bias": {"70": 100, "71": 100}, "temperature": 0.7}
        for own in ({"temperature": 0}, {**two, "seed": 3}, {**two, "seed": 4}):
            found = text(**own)
            assert text(**own, prompt_lookup_num_tokens=8) == found
            # It ends within what is drafted.
            stop = found[0][12:16]
            assert text(**own, stop=stop, prompt_lookup_num_tokens=8) == text(**own, stop=stop)
        assert num_accepted(client, folder) > 0


def test_a_draft_model_changes_nothing_that_a_client_sees(folder: Path, tmp_path: Path) -> None:
    dense = Checkpoint.open(folder)
    child = tmp_path / "child"
    kept = [Kept((0, 1), tuple(range(28)))] * len(dense.spec.layers)
    save_pruned(dense_llama(vocab_size=dense.spec.vocab_size), kept, child)
    write_tokenizer(child)
    words = ["--slots", "3", "--threads", "1"]
    plain, drafted = (
        generator_of("onnx", dense, own) for own in (words, [*words, "--draft", str(child)])
    )
    with serving(plain) as alone, serving(drafted) as client:
        wait_until(lambda: all(c.get("/health").status_code == 200 for c in (alone, client)))

        def text(server: httpx.Client, **own: Any) -> Any:
            body = {"prompt": "the cat sat. " * 2, "max_tokens": 30, "ignore_eos": True, **own}
            answer = server.post("/v1/completions", json=body).json()
            choices = [(each["text"], each["finish_reason"]) for each in answer["choices"]]
            return choices, answer["usage"]["completion_tokens"]

        sampled = {"temperature": 0.5, "seed": 3, "n": 4, "top_k": 20}
        for own in ({"temperature": 0}, sampled, {**sampled, "seed": 4, "repetition_penalty": 1.2}):
            found = text(alone, **own)
            assert text(client, **own) == found
            stop = found[0][0][0][12:16]
            assert text(client, **own, stop=stop) == text(alone, **own, stop=stop)
            assert text(client, **own, prompt_lookup_num_tokens=5) == found
        assert num_accepted(client, folder) > num_accepted(alone, folder) == 0


def num_accepted(client: httpx.Client, folder: Path) -> float:
    name = f'vllm:spec_decode_num_accepted_tokens_total{{model_name="{folder.name}"}}'
    lines = client.get("/metrics").text.splitlines()
    (count,) = (line.split()[-1] for line in lines if line.startswith(name))
    return float(count)
