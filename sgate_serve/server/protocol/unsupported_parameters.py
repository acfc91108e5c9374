"""Parameters of OpenAI and vLLM that have no effect here, and their accepted values.

Such a parameter is refused by name unless its value asks for nothing; that value is dropped, as is
null everywhere. Supported parameters are the fields of the request bodies, which refuse unknown
names.
"""

from collections.abc import Mapping
from typing import Any

from sgate_serve.errors import RequestError

# They identify the caller or a cache; the response is the same without them.
IGNORED = frozenset(
    {
        "cache_control",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    }
)

# Name → the values that ask for nothing; if there are none, it must be absent or null.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "audio": (),
    "background": (False,),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "container": (),
    "continue_final_message": (False,),
    "conversation": (),
    "documents": ([],),
    "early_stopping": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "images": (),
    "include": ([],),
    "include_reasoning": (True, False),
    "length_penalty": (1,),
    "max_tool_calls": (),
    "mcp_servers": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "priority": (0,),
    "reasoning": ({"effort": "none"},),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default", "standard_only"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "suffix": ("",),
    "text_pair": (),
    "thinking": ({"type": "disabled"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "truncation": ("disabled",),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}


def drop_neutral(body: Mapping[str, Any], supported: frozenset[str]) -> dict[str, Any]:
    """Return the members of a request body that are supported or unknown.

    `supported` names the parameters of the endpoint. Raises RequestError naming a parameter whose
    value asks for something that is not supported.
    """
    kept: dict[str, Any] = {}
    for name, value in body.items():
        if name in supported or name not in IGNORED | NEUTRAL.keys():
            kept[name] = value
        elif name in NEUTRAL and not _is_neutral(value, NEUTRAL[name]):
            accepted = " or ".join(repr(neutral) for neutral in NEUTRAL[name])
            remedy = f"leave it out or send {accepted}" if accepted else "leave it out"
            raise RequestError(f"`{name}` is not supported; {remedy}", param=name)
    return kept


def _is_neutral(value: Any, accepted: tuple[Any, ...]) -> bool:
    # In Python True == 1, but JSON distinguishes them: `logprobs: 0` asks for something, false does
    # not.
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in accepted
    )
