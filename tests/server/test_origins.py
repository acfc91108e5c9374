"""Pages of other web origins: kept out unless the option lets them in."""

import pytest

from sgate_serve.errors import SgateError
from sgate_serve.server import ServerOptions
from tests.server.hash_engine import HashEngine
from tests.server.live import VOCAB_SIZE, serving_engine

PAGE = "https://chat.example.com"
ASKS = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}
PATH = "/v1/chat/completions"


def test_no_origin_is_let_in_unless_asked_for() -> None:
    with serving_engine(HashEngine(VOCAB_SIZE)) as client:
        preflight = client.options(PATH, headers=ASKS)
        assert preflight.status_code == 405
        answers = [preflight, client.get("/v1/models", headers={"origin": PAGE})]
    assert not any("access-control-allow-origin" in answer.headers for answer in answers)


@pytest.mark.parametrize("origins", [(PAGE,), ("http://localhost:3000", PAGE), ("*",)])
def test_preflight_needs_no_key_and_the_request_does(origins: tuple[str, ...]) -> None:
    engine = HashEngine(VOCAB_SIZE)
    shown = "*" if "*" in origins else PAGE
    with serving_engine(engine, allow_origin=origins, api_key="key") as client:
        preflight = client.options(PATH, headers=ASKS)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == shown
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        refused = client.get("/v1/models", headers={"origin": PAGE})
        assert refused.status_code == 401
        key = {"origin": PAGE, "authorization": "Bearer key"}
        allowed = client.get("/v1/models", headers=key)
        assert allowed.status_code == 200
        for answer in (refused, allowed):
            assert answer.headers["access-control-allow-origin"] == shown
            assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_another_origin_is_kept_out() -> None:
    with serving_engine(HashEngine(VOCAB_SIZE), allow_origin=(PAGE,)) as client:
        for origin in ("https://example.com", f"{PAGE}.evil.example"):
            assert client.options(PATH, headers={**ASKS, "origin": origin}).status_code == 400
            answer = client.get("/v1/models", headers={"origin": origin})
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["chat.example.com", f"{PAGE}/", "", "https://a b"])
def test_what_no_browser_would_send_is_refused(origin: str) -> None:
    with pytest.raises(SgateError, match="is not a web origin; write it like https://chat"):
        ServerOptions(allow_origin=(origin,))
