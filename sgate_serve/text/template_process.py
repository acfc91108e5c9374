"""The process that compiles and renders chat templates: one JSON object a line in, one out.

It ends when its input does. The system ends it when a job takes longer than the seconds of its only
argument, even in the middle of a computation, and lets it have no more than MAX_MEMORY.
"""

import json
import resource
import signal
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Any

from jinja2 import Template

from sgate_serve.text.content_parts import reads_parts, reads_tools
from sgate_serve.text.template_environment import template_environment

MAX_MEMORY = 2**30
MAX_CHARACTERS = 2**24
MAX_MESSAGE = 500

ENVIRONMENT = template_environment()


def main(job_seconds: float) -> None:
    """Answer jobs until there are no more."""
    with suppress(ValueError, OSError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_REAL, job_seconds)
        answer = json.dumps(_answer(json.loads(line))).encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    """Render `source` with `variables`, or, without them, only see whether it compiles."""
    # A template may fail in any way, and so may Python's compiler, which Jinja's output goes to.
    try:
        template = _compiled(job["source"])
        if job["variables"] is None:
            tree = ENVIRONMENT.parse(job["source"])
            return {"reads_parts": reads_parts(tree), "reads_tools": reads_tools(tree)}
        text = template.render(job["variables"])
        if len(text) > MAX_CHARACTERS:
            return {"error": f"it wrote {len(text)} characters; at most {MAX_CHARACTERS} are read"}
        text.encode()  # raises for half a surrogate pair
        return {"text": text}
    except Exception as error:
        return {"error": _brief(error)}


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    return ENVIRONMENT.from_string(source)


def _brief(error: Exception) -> str:
    """Return what an error says on one line, or its kind if it says nothing."""
    return " ".join(str(error)[:MAX_MESSAGE].split()) or type(error).__name__


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main(float(sys.argv[1]))
