"""The fields that constrain the text of answers: `response_format` and vLLM's `structured_outputs`.

A schema is always enforced, whatever `strict` says. `name` and `description` are for the client:
the model does not see them.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sgate_serve.errors import RequestError
from sgate_serve.server.protocol.json_body import read_schema
from sgate_serve.server.protocol.strict_body import StrictBody, StrictModel
from sgate_serve.text.grammars import GrammarText

ANY_OBJECT = '{"type": "object"}'
# Exactly one of these is given; name in a body → our attribute.
CONSTRAINTS: Mapping[str, str] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "json_object": "json_object",
}


class JsonSchema(StrictModel):
    """A JSON schema with a name; its own name in a body is `schema`."""

    name: str
    content: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """Text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            found = "is missing" if self.json_schema is None else f"has no place in {self.type}"
            raise RequestError(
                f"`response_format.json_schema` {found}; it goes with the type `json_schema`, and "
                "with no other one",
                param="response_format.json_schema",
            )
        return self

    @property
    def grammar(self) -> GrammarText | None:
        """What the answer must be; None for any text."""
        if self.json_schema is not None:
            param = "response_format.json_schema.schema"
            return GrammarText("json", _json_text(self.json_schema.content), param)
        is_text = self.type == "text"
        return None if is_text else GrammarText("json", ANY_OBJECT, "response_format")


class StructuredOutputs(StrictModel):
    """vLLM's object with one constraint; `json_schema` is named `json` in a body."""

    json_schema: str | dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = None
    grammar: str | None = None
    json_object: Literal[True] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: Literal[False] = False

    @model_validator(mode="after")
    def _check_constraints(self) -> Self:
        given = {name for name, own in CONSTRAINTS.items() if getattr(self, own) is not None}
        if len(given) != 1:
            found = ", ".join(sorted(given)) or "none"
            raise RequestError(
                f"`structured_outputs` takes exactly one of {', '.join(CONSTRAINTS)}; it has "
                f"{found}",
                param="structured_outputs",
            )
        if self.disable_any_whitespace and not given & {"json", "json_object"}:
            raise RequestError(
                "`structured_outputs.disable_any_whitespace` is for JSON; leave it out",
                param="structured_outputs.disable_any_whitespace",
            )
        return self

    @property
    def text(self) -> GrammarText:
        """What the answer must be."""
        compact = self.disable_any_whitespace
        if self.json_object:
            return GrammarText("json", ANY_OBJECT, "structured_outputs.json_object", compact)
        if self.json_schema is not None:
            return GrammarText("json", self._schema(), "structured_outputs.json", compact)
        if self.regex is not None:
            return GrammarText("regex", self.regex, "structured_outputs.regex")
        if self.choice is not None:
            return GrammarText("choice", _json_text(self.choice), "structured_outputs.choice")
        assert self.grammar is not None
        return GrammarText("grammar", self.grammar, "structured_outputs.grammar")

    def _schema(self) -> str:
        """Return the text of the schema; a string is parsed, which refuses one that is no JSON."""
        content = self.json_schema
        if isinstance(content, str):
            content = read_schema(content, "structured_outputs.json")
        return _json_text(content)


class StructuredBody(StrictBody):
    """The base of bodies that may constrain the text of their answers."""

    response_format: ResponseFormat | None = Field(
        None,
        description="an object with `type`: text, json_object, or json_schema together with "
        "`json_schema`, an object with `name` and `schema`",
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description=f"an object with one of {', '.join(CONSTRAINTS)} (as in vLLM)"
    )

    @property
    def grammar(self) -> GrammarText | None:
        """What an answer must be; raises RequestError for two constraints, or JSON that is none."""
        own = None if self.response_format is None else self.response_format.grammar
        if self.structured_outputs is None:
            return own
        if own is not None:
            raise RequestError(
                "`response_format` and `structured_outputs` both constrain the answer; send one",
                param="structured_outputs",
            )
        return self.structured_outputs.text


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
