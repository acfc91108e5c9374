import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from sgate_serve.errors import CheckpointError, SgateError
from sgate_serve.server import ServedModel, ServerOptions, serve
from sgate_serve.server.lifecycle import address, open_listener
from tests.server.hash_engine import HashEngine
from tests.server.live import VOCAB_SIZE, wait_until

# A whole server process: argument 1 is the grace period, 2 the seconds that loading takes, 3 a chat
# template, or empty for no tokenizer.
PROGRAM = """
import sys, time
from sgate_serve.server import ServedModel, ServerOptions, serve
from sgate_serve.text.chat_template import ChatTemplate
from sgate_serve.text.tokenization import TextCodec
from tests.server.hash_engine import HashEngine
from tests.text_model import byte_tokenizer

def load():
    time.sleep(float(sys.argv[2]))
    codec = TextCodec(byte_tokenizer(), ChatTemplate(sys.argv[3], {})) if sys.argv[3] else None
    return ServedModel(HashEngine(100, step_seconds=0.02), "tiny", codec)

sys.exit(serve(ServerOptions(port=0, grace_seconds=float(sys.argv[1])), load))
"""


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@contextmanager
def process(
    grace: float, load_seconds: float = 0, template: str = ""
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server process; yields it with its address, read from its first line."""
    command = [sys.executable, "-c", PROGRAM, str(grace), str(load_seconds), template]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            assert run.stdout is not None
            line = run.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:")
            yield run, line.split()[-1]
        finally:
            run.kill()


def test_sigterm_lets_a_running_stream_end_and_exits_0() -> None:
    body = {"prompt": [5], "max_tokens": 60, "stream": True}
    with process(grace=20) as (run, url), httpx.Client(base_url=url) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            run.send_signal(signal.SIGTERM)
            wait_until(lambda: not accepts(url))
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason": "length"' in rest[-2]
        assert len(rest) == 60
        out, log = run.communicate(timeout=20)
    assert run.returncode == 0
    assert out == ""
    assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_an_idle_server_and_one_that_loads(number: signal.Signals) -> None:
    for load_seconds in (0, 60):
        with process(grace=20, load_seconds=load_seconds) as (run, url):
            httpx.get(f"{url}/health")
            run.send_signal(number)
            _, log = run.communicate(timeout=10)
        assert run.returncode == 0
        assert "Traceback" not in log


def test_stream_that_outlasts_the_grace_period_ends_with_an_error_and_done() -> None:
    body = {"prompt": [5], "max_tokens": 400, "stream": True}
    with process(grace=0.3) as (run, url), httpx.Client(base_url=url) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            run.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert '{"error": {"message": "the server is shutting down' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        run.communicate(timeout=10)
    assert run.returncode == 0


def test_signal_ends_a_server_whose_clients_send_only_half() -> None:
    body = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
    with process(grace=0.5) as (run, url):
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 200)
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        peers = [socket.create_connection(place) for _ in range(3)]
        for peer, sent in zip(peers, (b"", b"GET / HTTP/1.1\r\nHost", body), strict=True):
            peer.sendall(sent)
        httpx.get(f"{url}/health")  # when it answers, it has read the others too
        run.send_signal(signal.SIGTERM)
        _, log = run.communicate(timeout=5)
        assert b" 503 Service Unavailable" in peers[-1].recv(1000)
        for peer in peers:
            peer.close()
    assert run.returncode == 0
    assert "Traceback" not in log


@pytest.mark.parametrize("template", ["{{ 10 ** (messages | length * 300000000) }}", ENDLESS])
def test_signal_ends_a_server_whose_template_never_ends(template: str) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    with process(grace=0.5, template=template) as (run, url):
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 200)
        for _ in range(8):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=0.1)
        run.send_signal(signal.SIGTERM)
        _, log = run.communicate(timeout=4)  # less than a template may take
    assert run.returncode == 0
    assert "Traceback" not in log


def accepts(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("is_shadow", [False, True], ids=["model", "shadow"])
@pytest.mark.parametrize("error", [CheckpointError("config.json is missing"), SystemExit(3)])
def test_what_loading_raises_is_raised_by_serve(
    error: BaseException, is_shadow: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> ServedModel:
        raise error

    def load() -> ServedModel:
        return ServedModel(HashEngine(VOCAB_SIZE), "tiny")

    with pytest.raises(type(error)) as raised:
        serve(ServerOptions(port=0), *((load, fail) if is_shadow else (fail,)))
    assert raised.value is error
    assert capsys.readouterr().out.startswith("listening on http://127.0.0.1:")


def test_serve_gives_the_signal_handlers_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    engine = HashEngine(VOCAB_SIZE)

    def end() -> None:
        # Before the server has its own handler, the signal would end the tests.
        wait_until(lambda: signal.getsignal(signal.SIGTERM) != before[0])
        signal.raise_signal(signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    assert serve(ServerOptions(port=0), lambda: ServedModel(engine, "tiny")) == 0
    thread.join()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_connections_send_each_token_at_once() -> None:
    with (
        open_listener("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_address_that_cannot_be_had_is_named() -> None:
    with open_listener("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        message = rf"cannot listen on 127\.0\.0\.1, port {port}: .*; choose another host or port"
        with pytest.raises(SgateError, match=message):
            serve(ServerOptions(port=port), lambda: ServedModel(HashEngine(VOCAB_SIZE), "tiny"))
    with pytest.raises(SgateError, match="cannot listen on no such host, port 0: "):
        open_listener("no such host", 0)
    with pytest.raises(SgateError, match="port 70000: "):
        open_listener("127.0.0.1", 70000)


def test_address_of_an_ipv6_socket_has_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    try:
        listener = open_listener("::1", 0)
    except SgateError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with listener:
        assert address(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SgateError, match="the API key is empty; give one, or leave the option out"):
        ServerOptions(api_key="")
    with pytest.raises(SgateError, match="grace_seconds is -1; it must be 0 or more"):
        ServerOptions(grace_seconds=-1)
    with pytest.raises(SgateError, match="max_body_bytes is 0; it must be positive"):
        ServerOptions(max_body_bytes=0)
    assert "hidden" not in repr(ServerOptions(api_key="hidden"))


def test_server_needs_neither_torch_nor_an_engines_library() -> None:
    heavy = ("torch", "transformers", "onnxruntime", "onnx_ir", "vllm")
    program = f"import sys, sgate_serve.server; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "[]\n")
