"""Scores of pairs and rankings, by a cross-encoder and by embeddings, in vLLM's shapes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.commands.serve import reader_of
from sgate_serve.server.classifier_head import ClassifierHead
from tests.families.zoo import ZOO, build
from tests.server.encoders import TOKENIZER, encoder_of, expected
from tests.server.hash_encoder import HashEncoder
from tests.server.live import MODEL, VOCAB_SIZE, refusal, serving, serving_model, wait_until
from tests.text_model import BOS, EOS

QUERY, TEXTS = "the cat", ["a gate", "sat on the mat", "the cat"]
LONG = "the cat " * 60


@pytest.fixture(scope="module")
def scorer() -> Iterator[httpx.Client]:
    head = ClassifierHead(("relevant",), "regression")
    with serving_model(encoder_of("classify", HashEncoder(VOCAB_SIZE, 1), head=head)) as client:
        yield client


def ask(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def scores(client: httpx.Client, **body: Any) -> list[float]:
    return [entry["score"] for entry in ask(client, "/score", **body)["data"]]


def crossed(query: str, text: str) -> float:
    return float(torch.tensor(expected(query, text, 1)).sigmoid())


def cosine(query: str, text: str) -> float:
    one, other = (torch.tensor(expected(own)) for own in (query, text))
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_scores_have_vllms_shape(scorer: httpx.Client, embedder: httpx.Client) -> None:
    pairs = [TOKENIZER.encode(QUERY, text).ids for text in TEXTS]
    singles = [TOKENIZER.encode(text).ids for text in (QUERY, *TEXTS)]
    for client, score, read in ((scorer, crossed, pairs), (embedder, cosine, singles)):
        for path in ("/score", "/v1/score"):
            answer = ask(client, path, text_1=QUERY, text_2=TEXTS, model=MODEL)
            assert answer.keys() == {"id", "object", "created", "model", "data", "usage"}
            assert answer["id"].startswith("score-")
            assert answer["data"] == [
                {
                    "index": index,
                    "object": "score",
                    "score": pytest.approx(score(QUERY, text), 1e-6),
                }
                for index, text in enumerate(TEXTS)
            ]
            num_tokens = sum(map(len, read))
            counts = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
            assert answer["usage"] == counts | {"completion_tokens": 0}


def test_every_name_of_the_two_sides_is_read(scorer: httpx.Client) -> None:
    one = scores(scorer, text_1=QUERY, text_2=TEXTS[0])
    for first, second in (("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        assert scores(scorer, **{first: QUERY, second: TEXTS[0]}) == one
        assert scores(scorer, **{first: [QUERY], second: [TEXTS[0]]}) == one


def test_lists_are_paired_item_by_item(scorer: httpx.Client, embedder: httpx.Client) -> None:
    for client, score in ((scorer, crossed), (embedder, cosine)):
        found = scores(client, text_1=[*reversed(TEXTS)], text_2=TEXTS)
        pairs = zip(reversed(TEXTS), TEXTS, strict=True)
        assert found == pytest.approx([score(*pair) for pair in pairs], abs=1e-6)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_ranked(scorer: httpx.Client, embedder: httpx.Client, path: str) -> None:
    for client, score in ((scorer, crossed), (embedder, cosine)):
        answer = ask(client, path, query=QUERY, documents=TEXTS)
        assert answer.keys() == {"id", "model", "usage", "results"}
        order = sorted(range(3), key=lambda index: -score(QUERY, TEXTS[index]))
        assert answer["results"] == [
            {
                "index": index,
                "document": {"text": TEXTS[index]},
                "relevance_score": pytest.approx(score(QUERY, TEXTS[index]), 1e-5),
            }
            for index in order
        ]
        best = ask(client, path, query=QUERY, documents=TEXTS, top_n=1, return_documents=False)
        [only] = best["results"]
        assert only.keys() == {"index", "relevance_score"} and only["index"] == order[0]
        assert ask(client, path, query=QUERY, documents=TEXTS[0])["results"][0]["index"] == 0


def test_equal_documents_stay_in_their_order(scorer: httpx.Client) -> None:
    results = ask(scorer, "/rerank", query=QUERY, documents=[TEXTS[0]] * 4)["results"]
    assert [result["index"] for result in results] == [0, 1, 2, 3]


def test_logits_are_returned_without_the_activation(
    scorer: httpx.Client, embedder: httpx.Client
) -> None:
    found = scores(scorer, text_1=QUERY, text_2=TEXTS, use_activation=False)
    assert found == [float(expected(QUERY, text, 1)[0]) for text in TEXTS]
    [entry] = ask(embedder, "/v1/embeddings", input="a", use_activation=True)["data"]
    assert np.linalg.norm(entry["embedding"]) == pytest.approx(1)


def test_each_side_may_be_cut() -> None:
    engine = HashEncoder(VOCAB_SIZE, 1)
    head = ClassifierHead(("relevant",), "regression")
    limits = {"max_tokens_per_query": 2, "max_tokens_per_doc": 3}
    with serving_model(encoder_of("classify", engine, head=head)) as client:
        scores(client, text_1=LONG, text_2=LONG, **limits)
        scores(client, text_1=LONG, text_2=LONG, truncate_prompt_tokens=-1)
    with serving_model(encoder_of("embed", own := HashEncoder(VOCAB_SIZE))) as client:
        scores(client, text_1=LONG, text_2=LONG, **limits)
    bos, *ids, eos = TOKENIZER.encode(LONG).ids
    cut, whole = (request.prompt for request in engine.asked)
    assert cut == (bos, *ids[:2], eos, *ids[:3], eos)
    assert len(whole) == 64
    assert [request.prompt for request in own.asked] == [
        (bos, *ids[:2], eos),
        (bos, *ids[:3], eos),
    ]


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("/score", {}, "text_1", "send `text_1` and `text_2`, or `queries` and `documents`; the"),
        ("/score", {"text_1": "a"}, "text_1", "the body has `text_1`"),
        ("/score", {"text_1": "a", "documents": "b"}, "text_1", "has `text_1` and `documents`"),
        ("/score", {"text_1": [], "text_2": "a"}, "text_1", "`text_1` is an empty list; send at"),
        ("/score", {"text_1": ["a"] * 2, "text_2": ["a"] * 3}, "text_1", "as many on both sides"),
        ("/score", {"text_1": [5], "text_2": "a"}, "text_1.0", "expected a string or a list of"),
        ("/score", {"text_1": ["a"] * 1025, "text_2": "a"}, "text_1", "at most 1024 strings"),
        ("/score", {"text_1": "a", "text_2": LONG}, "text_1", "this model reads 64 tokens, but"),
        (
            "/score",
            {"text_1": "a" * 9000, "text_2": ["a"] * 1000, "truncate_prompt_tokens": -1},
            "text_1",
            "have 9001000 characters; at most 8388608 are read, so send shorter or fewer texts",
        ),
        ("/rerank", {"documents": ["a"]}, "query", "`query` is missing; expected a string"),
        ("/rerank", {"query": "a", "documents": []}, "documents", "is an empty list; send at"),
        ("/rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "top_n", "how many documents"),
        ("/rerank", {"query": ["a"], "documents": ["a"]}, "query", "valid string"),
        (
            "/rerank",
            {"query": "a", "documents": ["a"], "max_tokens_per_doc": 64},
            "max_tokens_per_doc",
            "is 64, but this model reads 64 tokens, those of the other text included",
        ),
    ],
)
def test_bad_bodies(
    scorer: httpx.Client, path: str, body: dict[str, Any], param: str, message: str
) -> None:
    response = scorer.post(path, json=body)
    assert response.status_code == 400
    error = refusal(response)
    assert error["param"] == param
    assert message in error["message"]


def test_other_models_have_no_scores(client: httpx.Client, classifier: httpx.Client) -> None:
    for other, found in (
        (client, "is a generative model; ask it at /v1/completions"),
        (classifier, "is a classifier with 3 labels; ask it at /classify"),
    ):
        error = refusal(other.post("/rerank", json={"query": "a", "documents": ["b"]}))
        assert error["code"] == "wrong_endpoint"
        assert (
            "/rerank needs an embedding model, or a classifier with one label, but"
            in (error["message"])
        )
        assert found in error["message"]


@pytest.mark.parametrize("activation", [None, "torch.nn.modules.linear.Identity"])
def test_a_cross_encoder_scores_as_in_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activation: str | None
) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    size = TOKENIZER.get_vocab_size()
    model = build(ZOO["bert"][1], seed=0, num_labels=1, vocab_size=size)
    model.config.sbert_ce_default_activation_function = activation
    model.save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZER,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
    )
    tokenizer.save_pretrained(tmp_path)
    with torch.no_grad():
        batch = tokenizer([QUERY] * 3, TEXTS, padding=True, return_tensors="pt")
        logits = model(**batch).logits[:, 0]
    checkpoint = Checkpoint.open(tmp_path)
    with serving(reader_of("onnx", checkpoint, ["--threads", "1"])) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        found = scores(client, text_1=QUERY, text_2=TEXTS)
    wanted = logits if activation else logits.sigmoid()
    assert found == pytest.approx(wanted.tolist(), abs=1e-5)
