"""How a server listens, whom it lets in, and how it ends."""

from dataclasses import dataclass

from sgate_serve.errors import SgateError
from sgate_serve.options import option


@dataclass(frozen=True)
class ServerOptions:
    """Port 0 takes a free one; without a key everyone who reaches the port is let in.

    `grace_seconds` is how long running requests may go on after SIGTERM or SIGINT.
    """

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on; 0 takes a free one")
    api_key: str | None = option(
        None, "key that clients must send (default: $SGATE_API_KEY, if set)", is_secret=True
    )
    grace_seconds: float = option(30.0, "how long running requests may go on after SIGTERM")
    max_body_bytes: int = option(32 * 1024**2, "largest request body")

    def __post_init__(self) -> None:
        if self.api_key == "":
            raise SgateError("the API key is empty; give one, or leave the option out")
        if self.grace_seconds < 0:
            raise SgateError(f"grace_seconds is {self.grace_seconds}; it must be 0 or more")
        if self.max_body_bytes <= 0:
            raise SgateError(f"max_body_bytes is {self.max_body_bytes}; it must be positive")
