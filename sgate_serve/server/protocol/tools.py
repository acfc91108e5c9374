"""The tools of a conversation: functions that the model may call, and whether it must.

Without `parameters` a function takes no arguments. The model sees a tool as it was sent, except for
`strict`, which asks for calls that follow `parameters`.
"""

import json
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from sgate_serve.errors import RequestError
from sgate_serve.server.excerpt import excerpt
from sgate_serve.server.protocol.json_body import read_schema
from sgate_serve.server.protocol.strict_body import StrictModel
from sgate_serve.text.tool_grammars import CallableTool

MAX_TOOLS = 1024
# Of what grammars and chat templates write without quoting.
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse NaN and infinite numbers, which are no JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise PydanticCustomError("finite_number", "Input should have finite numbers") from error
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_finite)]


class Function(StrictModel):
    """A function, in the words that the model sees; `parameters` is a JSON schema of an object."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(StrictModel):
    type: Literal["function"]
    function: Function

    @property
    def variables(self) -> dict[str, Any]:
        """The tool for a chat template."""
        own = self.function
        shown = {"name": own.name, "description": own.description, "parameters": own.parameters}
        function = {name: value for name, value in shown.items() if value is not None}
        return {"type": self.type, "function": function}


class NamedFunction(StrictModel):
    name: str


class NamedTool(StrictModel):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


def _parsed_arguments(text: Any) -> Any:
    """Return the object in the text of a call's arguments, as chat templates want it."""
    if not isinstance(text, str):
        raise PydanticCustomError("string_type", "Input should be a string of JSON")
    try:
        value = read_schema(text, "arguments") if text else {}
    except RequestError as error:
        raise PydanticCustomError("json", "{reason}", {"reason": str(error)}) from error
    if not isinstance(value, dict):
        raise PydanticCustomError("json", "Input should be a JSON object in a string")
    return value


def _arguments_text(text: str) -> str:
    _finite(_parsed_arguments(text))
    return text


# The same, where the text itself is wanted.
ArgumentsText = Annotated[str, AfterValidator(_arguments_text)]


class CalledFunction(StrictModel):
    """The name of a called function, and its arguments: JSON in a string, here as its object."""

    name: str
    arguments: Annotated[
        JsonObject, BeforeValidator(_parsed_arguments), WithJsonSchema({"type": "string"})
    ]


class ToolCall(StrictModel):
    """A call of an earlier answer. The SDK's streams leave an `index` in it."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None

    @property
    def variables(self) -> dict[str, Any]:
        """The call for a chat template."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": self.type, "function": function}


def check_names(tools: list[Tool]) -> None:
    """Raise RequestError for two tools of one name."""
    name, number = Counter(tool.function.name for tool in tools).most_common(1)[0]
    if number > 1:
        raise RequestError(
            f"`tools` has {number} functions named {excerpt(name)}; give each its own name",
            param="tools",
        )


def callable_tools(tools: list[Tool], choice: ToolChoice) -> list[CallableTool]:
    """Return the functions that may be called, each with its place in the request."""
    return [
        CallableTool(own.name, own.parameters, f"tools.{index}.function.parameters")
        for index, own in enumerate(tool.function for tool in tools)
        if not isinstance(choice, NamedTool) or own.name == choice.function.name
    ]
