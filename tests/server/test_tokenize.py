from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from sgate_serve.text.tokenization import TextCodec
from tests.server.hash_engine import HashEngine
from tests.server.live import MODEL, TOKENIZER, VOCAB_SIZE, refusal, serving_engine
from tests.text_model import BOS, CHAT_TEMPLATE, special_id, write_tokenizer

MESSAGES = [{"role": "user", "content": "the cat"}]
RENDERED = f"{BOS}user: the cat\nassistant:"


def ask(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_tokenize_has_vllms_shape(client: httpx.Client) -> None:
    ids = TOKENIZER.encode("the 🚀 cat").ids
    answer = ask(client, "/tokenize", model=MODEL, prompt="the 🚀 cat")
    assert answer == {"count": len(ids), "max_model_len": 512, "tokens": ids, "token_strs": None}
    answer = ask(client, "/tokenize", prompt="the cat", return_token_strs=True)
    assert answer["token_strs"] == TOKENIZER.encode("the cat").tokens


def test_special_tokens_of_a_prompt_can_be_left_out(client: httpx.Client) -> None:
    for adds in (True, False):
        answer = ask(client, "/tokenize", prompt="the", add_special_tokens=adds)
        assert (answer["tokens"][0] == special_id(TOKENIZER, BOS)) is adds


def test_conversation_has_those_of_its_template(client: httpx.Client) -> None:
    rendered = TOKENIZER.encode(RENDERED, add_special_tokens=False).ids
    bos = special_id(TOKENIZER, BOS)
    assert ask(client, "/tokenize", messages=MESSAGES)["tokens"] == rendered
    answer = ask(client, "/tokenize", messages=MESSAGES, add_special_tokens=True)
    assert answer["tokens"] == [bos, *rendered]
    usage = client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1})
    assert usage.json()["usage"]["prompt_tokens"] == len(rendered)


def test_a_conversation_becomes_its_prompt(client: httpx.Client) -> None:
    assert ask(client, "/apply-template", messages=MESSAGES) == {"prompt": RENDERED}
    ended = ask(client, "/apply-template", messages=MESSAGES, add_generation_prompt=False)
    assert ended["prompt"] == RENDERED.removesuffix("assistant:")


def test_settings_of_the_tokenizer_are_those_of_transformers(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=CHAT_TEMPLATE, model_max_length=77)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    codec = TextCodec.load(tmp_path)
    with serving_engine(HashEngine(VOCAB_SIZE), codec) as client:
        info = client.get("/tokenizer_info").raise_for_status().json()
    assert info["tokenizer_class"] == "PreTrainedTokenizerFast"
    for key in ("bos_token", "eos_token", "chat_template", "model_max_length"):
        assert info[key] == str(theirs.init_kwargs[key]) or info[key] == theirs.init_kwargs[key]
    with serving_engine(HashEngine(VOCAB_SIZE), codec=None) as client:
        response = client.get("/tokenizer_info")
    assert (response.status_code, refusal(response)["message"]) == (
        404,
        "this model has no tokenizer",
    )


@pytest.mark.parametrize("text", ["the cat", "猫🚀 naïve", RENDERED, ""])
def test_detokenize_is_the_way_back(client: httpx.Client, text: str) -> None:
    tokens = ask(client, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]
    assert ask(client, "/detokenize", tokens=tokens) == {"prompt": text}


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("/tokenize", {}, "prompt", "send either `prompt` or `messages`"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt", "send either `prompt` or"),
        ("/tokenize", {"prompt": [5]}, "prompt", "expected a string, or `messages` instead"),
        ("/tokenize", {"messages": []}, "messages", "expected a list of messages, or `prompt`"),
        ("/tokenize", {"prompt": "a", "wat": 1}, "wat", "`wat` is not a known field"),
        ("/detokenize", {}, "tokens", "`tokens` is missing; expected a list of token ids"),
        ("/detokenize", {"tokens": [VOCAB_SIZE]}, "tokens", f"ids are 0 to {VOCAB_SIZE - 1}"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0", "expected a list of token ids"),
    ],
)
def test_bad_bodies(
    client: httpx.Client, path: str, body: dict[str, Any], param: str, message: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 400
    error = refusal(response)
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "a"}),
        ("/tokenize", {"messages": MESSAGES}),
        ("/detokenize", {"tokens": [5]}),
    ],
)
def test_without_a_tokenizer_there_are_none(path: str, body: dict[str, Any]) -> None:
    with serving_engine(HashEngine(VOCAB_SIZE), codec=None) as client:
        response = client.post(path, json=body)
        assert response.status_code == 400
        assert "needs a tokenizer and this model has none; put" in refusal(response)["message"]
        unknown = client.post(path, json={**body, "model": "gpt"})
        assert unknown.status_code == 404
