"""The page at `/`, alone and in a browser."""

import base64
import hashlib
import re
import shutil

import pytest

from tests.server.hash_engine import HashEngine
from tests.server.live import MODEL, VOCAB_SIZE, serving_engine, speaking


def test_page_is_open_and_runs_only_its_own_script() -> None:
    with serving_engine(HashEngine(VOCAB_SIZE), api_key="secret") as client:
        response = client.get("/")
        assert client.get("/v1/models").status_code == 401
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    # Nothing comes from elsewhere.
    assert not re.search(r"https?://|\ssrc=|@import|url\(", response.text)


@pytest.mark.slow
def test_page_chats_in_a_browser() -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    said = "Hi <b>there</b>!"
    with (
        serving_engine(speaking(said), api_key="secret") as client,
        playwright.sync_playwright() as play,
    ):
        page = play.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(str(client.base_url))
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        page.wait_for_selector("section")
        assert page.locator("section select").input_value() == MODEL
        page.fill("#text", "Hello")
        page.press("#text", "Enter")
        page.wait_for_selector("text=tokens/s")
        page.wait_for_selector("#send:not([hidden])")
        assert page.locator(".turn").all_inner_texts() == ["Hello", said]
        page.select_option("#mode", "completion")
        page.fill("#text", "Once ")
        page.click("#send")
        page.wait_for_function("document.querySelectorAll('.turn').length === 3")
        page.wait_for_selector("#send:not([hidden])")
        assert page.locator(".turn").all_inner_texts()[2] == f"Once {said}"
        assert errors == []
