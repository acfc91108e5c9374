"""The base classes of request bodies, which are validated strictly.

`"5"` is not a number, null means absent, and unknown fields are refused. Every refusal is a
RequestError whose `param` is the path of the bad value.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from sgate_serve.errors import RequestError, did_you_mean
from sgate_serve.server.excerpt import cut, excerpt
from sgate_serve.server.protocol.json_body import read_json
from sgate_serve.server.protocol.unsupported_parameters import drop_neutral

# Pydantic's names of errors.
UNKNOWN, MISSING = "extra_forbidden", "missing"

# Every list stops at its first wrong item: an error for each would take gigabytes.
TokenIds = Annotated[list[int], Field(fail_fast=True)]

MAX_PROMPTS = 1024

Prompts = (
    str
    | TokenIds
    | Annotated[list[str], Field(max_length=MAX_PROMPTS, fail_fast=True)]
    | Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS, fail_fast=True)]
)
PROMPTS_EXPECTED = (
    f"a string, a list of token ids, or a list of at most {MAX_PROMPTS} strings or lists of token "
    "ids"
)
NOT_AN_OBJECT = RequestError(
    "the body must be a JSON object sent with Content-Type: application/json"
)


class StrictModel(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StrictBody(StrictModel):
    """The base of the request bodies."""

    model: str | None = Field(None, description="the served model's name, or absent")

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, body: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(body, cls):
            return body  # read before, by `read_body`
        if not isinstance(body, dict):
            raise NOT_AN_OBJECT
        fields = drop_neutral(body, frozenset(cls.model_fields))
        try:
            return handler(fields)
        except ValidationError as error:
            raise cls._refusal(error, fields) from error

    @classmethod
    def _refusal(cls, error: ValidationError, fields: Mapping[str, Any]) -> RequestError:
        """Return the most specific of pydantic's errors, with the value, its path and a remedy.

        For a union pydantic reports an error of every member; the one with the longest path, or
        else the one that got furthest in a list, belongs to the member that was meant.
        """
        details = error.errors(include_url=False, include_context=False)
        found = [(_path(detail["loc"], detail["type"], fields), detail) for detail in details]
        (path, value), detail = max(found, key=lambda entry: _rank(entry[0][0], entry[1]["type"]))
        param = ".".join(cut(str(part)) for part in path)
        if detail["type"] == UNKNOWN:
            hint = did_you_mean(str(path[-1]), _field_names(cls, path))
            return RequestError(f"`{param}` is not a known field; leave it out{hint}", param=param)
        field = cls.model_fields.get(str(path[0]))
        expected = f"; expected {field.description}" if field else ""
        if detail["type"] == MISSING:
            return RequestError(f"`{param}` is missing{expected}", param=param)
        return RequestError(
            f"`{param}` is {excerpt(value)}: {detail['msg']}{expected}", param=param
        )


BodyT = TypeVar("BodyT", bound=StrictBody)


def read_body(content: bytes, kind: type[BodyT]) -> BodyT:
    """Return the bytes of a body as its model; raise RequestError naming what is wrong."""
    return kind.model_validate(read_json(content))


def as_list(prompts: Prompts) -> list[str | TokenIds]:
    """Return the prompts as a list, even a single one."""
    if isinstance(prompts, str):
        return [prompts]
    is_ids = bool(prompts) and isinstance(prompts[0], int)
    return [prompts] if is_ids else [*prompts]  # type: ignore[list-item]


def _rank(path: tuple[int | str, ...], kind: str) -> tuple[int, bool, list[int]]:
    """Return how specific an error is; of equals, the first is meant.

    If a field is missing, a misspelt one next to it is the cause.
    """
    return len(path), kind != MISSING, [part for part in path if isinstance(part, int)]


def _field_names(body: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """Return the known fields of the object at the end of `path`, of any kind it may be."""
    kinds = {body}
    for part in path[:-1]:
        if isinstance(part, str):
            kinds = {
                kind
                for each in kinds
                if part in each.model_fields
                for kind in _models_in(each.model_fields[part].annotation)
            }
    fields = (item for kind in kinds for item in kind.model_fields.items())
    return {field.alias or name for name, field in fields}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the bodies that a type such as `list[Message] | None` names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _path(loc: tuple[int | str, ...], kind: str, body: Any) -> tuple[tuple[int | str, ...], Any]:
    """Return the path in the body for a pydantic location, and the value there.

    Pydantic inserts the names of union members, such as `list[int]`, between the keys.
    """
    path: tuple[int | str, ...] = ()
    value = body
    for number, part in enumerate(loc, start=1):
        is_missing = kind == MISSING and number == len(loc)
        if isinstance(value, dict) and (part in value or is_missing):
            path, value = (*path, part), value.get(str(part))
        elif isinstance(value, list) and isinstance(part, int):
            path, value = (*path, part), value[part]
    return path, value
