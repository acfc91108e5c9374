"""Answers to random schemas, of a random model at temperature 1, are valid for another library."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgate_serve.engines.contract import Request, SamplingParams
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.table import load_engine
from sgate_serve.text.grammars import GrammarCompiler, GrammarText
from sgate_serve.text.tokenization import TextCodec
from tests.engines.drive import run
from tests.server.onnx_server import tiny_folder

jsonschema = pytest.importorskip("jsonschema", reason="pip install sgate-serve[dev]")

Schema = dict[str, Any]
Write = Callable[[Schema, int], str]
PROMPT = (5, 6, 7)
# All of them end: noise does not close a string or a list by itself for a long time.
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-999, 999), st.text(max_size=5)
)
PATTERNS = ["^[a-c]{1,3}$", "^(on|off)$", "^\\d{2}-[A-F]$"]
FORMATS = ["date", "time", "ipv4", "uuid"]
SIMPLE: st.SearchStrategy[Schema] = st.one_of(
    st.builds(lambda value: {"const": value}, VALUES),
    st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=4)),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}]),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-2000, 2000),
        st.integers(0, 500),
    ),
    st.builds(
        lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    st.builds(lambda own: {"type": "string", "pattern": own}, st.sampled_from(PATTERNS)),
    st.builds(lambda own: {"type": "string", "format": own}, st.sampled_from(FORMATS)),
)


def array(items: Schema, low: int, size: int) -> Schema:
    return {"type": "array", "items": items, "minItems": low, "maxItems": low + size}


def closed_object(properties: dict[str, Schema], is_required: bool) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties] if is_required else [],
        "additionalProperties": False,
    }


def nested(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    names = st.sampled_from(["a", "b c", "ü", 'q"', "$ref"])
    return st.one_of(
        st.builds(array, inner, st.integers(0, 2), st.integers(0, 2)),
        st.builds(lambda own: {"anyOf": own}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(closed_object, st.dictionaries(names, inner, max_size=3), st.booleans()),
    )


SCHEMAS = st.recursive(SIMPLE, nested, max_leaves=4)


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """A function that answers a schema; the seed is that of the draws."""
    folder = tiny_folder(tmp_path_factory.mktemp("tiny"))
    engine = load_engine("onnx", folder / "onnx", SlotOptions(slots=2, threads=1))
    codec = TextCodec.load(folder)
    assert codec is not None
    compiler = GrammarCompiler(codec, engine.vocab_size)

    def write(schema: Schema, seed: int) -> str:
        source = GrammarText("json", json.dumps(schema), "schema", compact=True)
        sampling = SamplingParams(250, seed=seed, grammar=compiler.compile(source))
        answer = run(engine, [Request("a", PROMPT, sampling)])["a"]
        assert answer.finish_reason == "stop"
        return b"".join(map(codec.text_bytes, answer.tokens)).decode()

    return write


@settings(max_examples=60, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_answers_are_valid(write: Write, schema: Schema, seed: int) -> None:
    jsonschema.validate(json.loads(write(schema, seed)), schema)
