"""Log-probabilities in both shapes, whole and streamed, and those of an echoed prompt."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, models

from sgate_serve.text.tokenization import TextCodec
from tests.server.hash_engine import HashEngine
from tests.server.live import (
    CODEC,
    EOS_ID,
    TOKENIZER,
    VOCAB_SIZE,
    events,
    refusal,
    serving_engine,
    speaking,
)
from tests.server.onnx_server import serving_folder, tiny_folder
from tests.text_model import BOS

TEXT = "the cat 🚀 座った sat"
LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def answers(client: httpx.Client, path: str, stream: bool, **body: Any) -> list[dict[str, Any]]:
    response = client.post(path, json={"max_tokens": 60, "stream": stream, **body})
    assert response.status_code == 200, response.text
    return events(response) if stream else [response.json()]


@pytest.mark.parametrize("stream", [False, True])
def test_completion_lists_each_token(stream: bool) -> None:
    with serving_engine(speaking(TEXT)) as client:
        found = answers(client, "/v1/completions", stream, prompt="a", logprobs=2)
    parts = [answer["choices"][0]["logprobs"] for answer in found]
    assert all(part.keys() == set(LISTS) for part in parts)
    tokens, logprobs, top, offsets = (
        [item for part in parts for item in part[name]] for name in LISTS
    )
    pieces = [CODEC.token_bytes(token) for token in TOKENIZER.encode(TEXT).ids[1:]]
    assert b"".join(pieces).decode() == TEXT
    assert tokens == [piece.decode("utf-8", "backslashreplace") for piece in pieces]
    assert logprobs == [-0.5] * len(pieces)
    assert all(
        len(best) == 2 and best[token] == -0.5 for token, best in zip(tokens, top, strict=True)
    )
    for index, offset in enumerate(offsets):
        assert TEXT.encode().find(b"".join(pieces[:index])) == 0
        assert offset == len(b"".join(pieces[:index]).decode(errors="ignore"))


@pytest.mark.parametrize("stream", [False, True])
def test_chat_lists_each_token_with_its_bytes(stream: bool) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "logprobs": True, "top_logprobs": 3}
    with serving_engine(speaking(TEXT)) as client:
        found = answers(client, "/v1/chat/completions", stream, **body)
        plain = answers(client, "/v1/chat/completions", stream, messages=messages)
    if stream:
        # The role comes first, without a token, and the end of the text last.
        assert [found.pop(place)["choices"][0]["logprobs"] for place in (0, -1)] == [None, None]
    content = [entry for answer in found for entry in answer["choices"][0]["logprobs"]["content"]]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == TEXT
    for entry in content:
        assert entry.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -1.5, -2.5]
        assert entry["top_logprobs"][0]["bytes"] == entry["bytes"]
    assert all(answer["choices"][0]["logprobs"] is None for answer in plain)


def test_chosen_token_is_listed_also_without_others(client: httpx.Client) -> None:
    body = {"prompt": "a", "logprobs": 0, "max_tokens": 2, "ignore_eos": True}
    [answer] = answers(client, "/v1/completions", False, **body)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{token: -0.5} for token in logprobs["tokens"]]


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_echo_scores_the_prompt_as_lm_eval_reads_it(
    client: httpx.Client, max_tokens: int, stream: bool, as_tokens: bool
) -> None:
    prompts = [TOKENIZER.encode(text).ids for text in ("the cat 🚀", "a gate")]
    body = {"prompt": prompts if as_tokens else ["the cat 🚀", "a gate"], "ignore_eos": True}
    options = {"echo": True, "logprobs": 1, "max_tokens": max_tokens, "temperature": 0}
    found = answers(client, "/v1/completions", stream, **body, **options)
    for index, (prompt, text) in enumerate(zip(prompts, ("the cat 🚀", "a gate"), strict=True)):
        own = [c for answer in found for c in answer["choices"] if c["index"] == index]
        tokens, logprobs, top, offsets = (
            [item for choice in own for item in choice["logprobs"][name]] for name in LISTS
        )
        shown = "".join(choice["text"] for choice in own)
        assert shown.startswith(text) and (max_tokens or shown == text)
        assert len(tokens) == len(logprobs) == len(top) == len(prompt) + max_tokens
        assert (tokens[0], logprobs[0], top[0], offsets[0]) == (BOS, None, None, 0)
        assert logprobs[1:] == [-0.5] * (len(tokens) - 1)
        assert all(best == {token: -0.5} for token, best in zip(tokens[1:], top[1:], strict=True))
        assert offsets == sorted(offsets)
        assert offsets[len(prompt) :] == [len(text)] * max_tokens
        assert own[-1]["finish_reason"] == "length"


def test_echo_without_tokens_or_scores_is_the_prompt(client: httpx.Client) -> None:
    body = {"prompt": "the cat", "echo": True, "max_tokens": 0}
    [answer] = answers(client, "/v1/completions", False, **body)
    assert answer["choices"][0]["text"] == "the cat"
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 0


def test_without_a_tokenizer_tokens_go_by_their_ids() -> None:
    with serving_engine(HashEngine(VOCAB_SIZE, script=[7]), codec=None) as client:
        body = {"prompt": [5], "logprobs": 2, "max_tokens": 1}
        [answer] = answers(client, "/v1/completions", False, **body)
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [
        {"token_id:7": -0.5, "token_id:8": -1.5}
    ]


def test_bytes_of_tokens() -> None:
    for text in ("naïve\n\t", "🚀 座", "\x00\xa0\xad"):
        ids = TOKENIZER.encode(text, add_special_tokens=False).ids
        assert b"".join(CODEC.token_bytes(token) for token in ids).decode() == text
    assert CODEC.token_bytes(EOS_ID) == b"</s>"
    assert CODEC.token_bytes(10**6) == b""


def test_bytes_of_sentencepiece_tokens() -> None:
    vocab = {"<unk>": 0, "\u2581the": 1, "<0xF0>": 2, "cat": 3}
    codec = TextCodec(Tokenizer(models.BPE(vocab, [], byte_fallback=True)))
    assert [codec.token_bytes(token) for token in (1, 2, 3)] == [b" the", b"\xf0", b"cat"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_stop_token_is_the_last_where_token_ids_are_asked_for(stream: bool, path: str) -> None:
    is_chat = path != "/v1/completions"
    source = {"messages": [{"role": "user", "content": "hi"}]} if is_chat else {"prompt": "a"}
    body = {**source, "logprobs": True if is_chat else 0, "return_tokens_as_token_ids": True}
    with serving_engine(speaking(TEXT)) as client:
        found = answers(client, path, stream, **body, return_token_ids=True)
        plain = answers(client, path, stream, **body)

    def names(parts: list[dict[str, Any]]) -> list[str]:
        own = [part["choices"][0]["logprobs"] for part in parts]
        if not is_chat:
            return [name for logprobs in own for name in logprobs["tokens"]]
        return [entry["token"] for logprobs in own if logprobs for entry in logprobs["content"]]

    ids = [*TOKENIZER.encode(TEXT).ids[1:], EOS_ID]
    assert [token for part in found for token in part["choices"][0]["token_ids"]] == ids
    assert names(found) == [f"token_id:{token}" for token in ids]
    assert names(plain) == names(found)[:-1]
    text = "".join(part["choices"][0].get("text", "") for part in found)
    assert text == ("" if is_chat else TEXT)


def test_chosen_tokens_are_shown_instead_of_the_likeliest(tmp_path: Path) -> None:
    ids = [70, 80, 90]
    body = {"prompt": "the cat", "max_tokens": 3, "seed": 1, "ignore_eos": True}
    named = {"return_tokens_as_token_ids": True}
    chosen = {**body, **named, "logprob_token_ids": ids}
    chat = {**chosen, "logprobs": True, "messages": [{"role": "user", "content": "hi"}]}
    del chat["prompt"]
    with serving_folder(tiny_folder(tmp_path), slots=2) as client:
        [whole] = answers(client, "/v1/completions", False, **body, **named, logprobs=-1)
        found = [
            answers(client, "/v1/completions", stream, **chosen, logprobs=1)
            for stream in (False, True)
        ]
        [spoken] = answers(client, "/v1/chat/completions", False, **chat)
    all_of_them = whole["choices"][0]["logprobs"]
    for answer in found:
        shown = [top for part in answer for top in part["choices"][0]["logprobs"]["top_logprobs"]]
        for top, token, every in zip(
            shown, all_of_them["tokens"], all_of_them["top_logprobs"], strict=True
        ):
            names = {token, *(f"token_id:{own}" for own in ids)}
            assert top == pytest.approx({name: every[name] for name in names}, abs=1e-4)
    for entry in spoken["choices"][0]["logprobs"]["content"]:
        listed = [top["token"] for top in entry["top_logprobs"]]
        assert {*listed} == {entry["token"], *(f"token_id:{own}" for own in ids)}
        assert len(listed) == len({*listed})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "`logprob_token_ids` is only for `logprobs`; leave it out"),
        ({"logprobs": 1, "max_tokens": 0, "echo": True}, "and `max_tokens` 0 generates none; leav"),
        ({"logprobs": 1, "logprob_token_ids": [10**9]}, "has the token id 1000000000; this model"),
        ({"logprobs": 1, "logprob_token_ids": [5] * 129}, "a list of at most 128 token ids"),
    ],
)
def test_chosen_tokens_that_cannot_be_shown_are_refused(
    client: httpx.Client, body: dict[str, Any], message: str
) -> None:
    whole = {"prompt": "a", "logprob_token_ids": [5], **body}
    error = refusal(client.post("/v1/completions", json=whole))
    assert error["param"] == "logprob_token_ids" and message in error["message"]
