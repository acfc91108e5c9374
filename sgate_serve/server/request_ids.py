"""Ids of requests, which clients may choose: in the header `x-request-id`, or in the body."""

import re
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

HEADER = "x-request-id"
# An id goes into a header and into log lines: no spaces, quotes or line breaks.
SAFE_ID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")


def request_id(scope: Scope) -> str:
    """Return the id in the header if it is safe to log, else a new one."""
    given = Headers(scope=scope).get(HEADER, "")
    return given if SAFE_ID.fullmatch(given) else uuid4().hex


def rename_request(request: Request, chosen: str | None) -> None:
    """Give a request the safe id that its body has, if it has one and the header none."""
    if chosen is not None and HEADER not in request.headers:
        request.state.request_id = chosen
