"""An HTTP server that answers completions as a test says: well, with errors, late, or cut off."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
NUM_TOKENS = 3


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def token(text: str = "a", **more: Any) -> bytes:
    return event({"choices": [{"index": 0, "text": text, **more}], "usage": None})


def usage(num_input: int, num_output: int) -> bytes:
    counts = {"prompt_tokens": num_input, "completion_tokens": num_output}
    return event({"choices": [], "usage": counts})


DONE = b"data: [DONE]\n\n"
GOOD = (*[token()] * NUM_TOKENS, usage(4, NUM_TOKENS), DONE)


@dataclass
class Answer:
    """The pieces of a stream, or an error; `stalls` waits after them, `cuts` hangs up."""

    pieces: tuple[bytes, ...] = GOOD
    status: int = 200
    error: Any = None
    stalls: bool = False
    cuts: bool = False


@dataclass
class Stub:
    """The answer to each completion by its body and number, and what was received."""

    answer: Callable[[Body, int], Answer] = lambda body, number: Answer()
    models: Any = field(default_factory=lambda: {"data": [{"id": "stub"}]})
    tokens: list[int] | None = None
    url: str = ""
    bodies: list[Body] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: Stub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        found = self.path == "/v1/models" and self.stub.models is not None
        self._json(200 if found else 404, self.stub.models if found else {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            known = self.stub.tokens is not None
            self._json(200 if known else 404, {"tokens": self.stub.tokens})
            return
        self.stub.bodies.append(body)
        self.stub.paths.append(self.path)
        answer = self.stub.answer(body, len(self.stub.bodies) - 1)
        if answer.error is not None:
            self._json(answer.status, answer.error)
            return
        self._stream(answer)

    def _stream(self, answer: Answer) -> None:
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in answer.pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.flush()
        if answer.stalls:
            self.stub.released.wait()
        if answer.cuts or answer.stalls:
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def _json(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """Run the stub on a free port, its `url`."""
    handler = type("StubHandler", (Handler,), {"stub": stub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield stub
    finally:
        stub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
