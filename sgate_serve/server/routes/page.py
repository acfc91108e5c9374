"""The page at `/`, on which the served models can be tried: one file that loads no other."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from sgate_serve.server.paths import PAGE_PATH

PAGE = "index.html"


def page_router() -> APIRouter:
    router = APIRouter()
    router.add_api_route(PAGE_PATH, show_page, response_class=HTMLResponse)
    return router


async def show_page() -> HTMLResponse:
    """Show a page on which the served models can be tried."""
    content, policy = _page()
    return HTMLResponse(content, headers={"content-security-policy": policy})


@cache
def _page() -> tuple[str, str]:
    """Return the page, and a policy that lets it run its own script and ask this server only."""
    content = files("sgate_serve.server.page").joinpath(PAGE).read_text(encoding="utf-8")
    parts = {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "script-src": _hash_of("script", content),
        "style-src": _hash_of("style", content),
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return content, "; ".join(f"{name} {value}" for name, value in parts.items())


def _hash_of(tag: str, content: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
    assert found is not None, f"the page has no {tag}"
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
