"""instructor, which parses answers of chats, responses and messages into pydantic models."""

from typing import Any

import openai
import pytest

from tests.clients.answers import ANNA, MESSAGES, MODEL, REASON, Person, Pet

instructor = pytest.importorskip("instructor", reason=REASON)
pytestmark = pytest.mark.slow

ASKED: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_retries": 0}
IN_CALLS = ["TOOLS", "RESPONSES_TOOLS"]
IN_TEXT = ["JSON", "JSON_SCHEMA", "MD_JSON"]


def client_of(url: str, mode: str) -> Any:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    return instructor.from_openai(client, mode=instructor.Mode[mode])


def check_anna(answer: Any) -> None:
    """Answers are of classes that instructor makes."""
    assert answer.model_dump() == ANNA.model_dump()


@pytest.mark.parametrize("mode", IN_CALLS + IN_TEXT)
def test_answers_are_parsed(teller: str, filler: str, mode: str) -> None:
    client = client_of(filler if mode in IN_CALLS else teller, mode)
    check_anna(client.chat.completions.create(**ASKED, response_model=Person))


@pytest.mark.parametrize("mode", ["TOOLS", "RESPONSES_TOOLS", "JSON_SCHEMA"])
def test_noise_follows_the_model(noise: str, mode: str) -> None:
    """In the other modes only the model knows the schema."""
    answer = client_of(noise, mode).chat.completions.create(**ASKED, response_model=Pet)
    assert isinstance(answer, Pet)


def test_answers_are_parsed_while_they_are_written(teller: str) -> None:
    parts = [
        *client_of(teller, "JSON").chat.completions.create_partial(**ASKED, response_model=Person)
    ]
    check_anna(parts[-1])
    assert "Ann" in {part.name for part in parts}


def test_a_wrong_answer_is_sent_back_with_its_errors(filler: str) -> None:
    """The calls and their errors must be a conversation that the server takes."""
    from instructor.core import InstructorRetryException

    never = type("Person", (Pet,), {})
    with pytest.raises(InstructorRetryException) as error:
        client_of(filler, "TOOLS").chat.completions.create(
            **{**ASKED, "max_retries": 1}, response_model=never
        )
    assert error.value.n_attempts == 2


@pytest.mark.parametrize("mode", ["TOOLS", "JSON"])
def test_messages_are_parsed(teller: str, filler: str, mode: str) -> None:
    anthropic = pytest.importorskip("anthropic", reason=REASON)
    url = filler if mode in IN_CALLS else teller
    own = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    client = instructor.from_anthropic(own, mode=instructor.Mode[mode])
    check_anna(client.messages.create(**ASKED, max_tokens=400, response_model=Person))
