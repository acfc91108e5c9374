"""What the servers of these tests say, and what their clients ask for."""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tests.tool_templates import CLOCK, WEATHER

REASON = "pip install sgate-serve[clients]"
# The last part of every server's name for its model.
MODEL = "tiny-model"
TEXT = "the cat 🚀 sat on the mat"
QUESTION = "the weather?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
# Longer than the context of `talker`.
TOO_LONG: Any = [{"role": "user", "content": "x" * 3000}]

PARIS = {"city": "Paris", "unit": "C"}
CALLS = (
    "I look.\n"
    f'<tool_call>\n{{"name": "get_weather", "arguments": {json.dumps(PARIS)}}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)
TOOLS: Any = [WEATHER, CLOCK]


class Person(BaseModel):
    """A person."""

    name: str
    age: int


ANNA = Person(name="Anna", age=31)
ANNA_CALLED = (
    f'<tool_call>\n{{"name": "Person", "arguments": {ANNA.model_dump_json()}}}\n</tool_call>'
)


class Pet(BaseModel):
    """A pet, in JSON that even noise comes to the end of: it has no room for spaces."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"x-guidance": {"whitespace_flexible": False}}
    )

    kind: Literal["cat", "dog"]
    legs: Literal[3, 4]


def get_weather(city: str, unit: str) -> str:
    """The weather of a city."""
    return f"7 {unit} in {city}"


def clock() -> str:
    """The time."""
    return "noon"
