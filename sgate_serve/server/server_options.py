"""The options of the server: address, access, limits, shutdown and log."""

import re
from dataclasses import dataclass

from sgate_serve.errors import SgateError, did_you_mean
from sgate_serve.options import flag_of, option
from sgate_serve.text.tool_formats import FORMATS

LOG_FORMATS = ("text", "json")
# The groups of `sgate serve --help`.
ADDRESS, LIMITS, LOG = "address, names and access", "limits", "log and traces"
COMPARISON = "comparison with another model"
SPEED = "speed"
DEFAULT_SHARE = 0.1
# The form of a browser's `Origin` header: a scheme, a host and optionally a port, but no path.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")


@dataclass(frozen=True)
class ServerOptions:
    """The flags of `sgate serve` for our own server.

    Without an `api_key` everyone who reaches the port has access. `max_queue` counts prompts and
    choices, not calls, and only those that wait for a slot.
    """

    host: str = option("127.0.0.1", "address to listen on", group=ADDRESS)
    port: int = option(8000, "port to listen on; 0 picks a free one", group=ADDRESS)
    api_key: str | None = option(
        None,
        "key that clients must send (default: $SGATE_API_KEY, if set)",
        is_secret=True,
        group=ADDRESS,
    )
    allow_origin: tuple[str, ...] = option(
        (),
        "web origins whose pages may call this server (CORS), separated by commas; * for all "
        "(default: none)",
        group=ADDRESS,
    )
    served_model_name: tuple[str, ...] = option(
        (),
        "names of the model in requests, separated by commas; responses have the first "
        "(default: the folder's name)",
        group=ADDRESS,
    )
    model: tuple[str, ...] = option(
        (),
        "more models to serve, as NAME=FOLDER, separated by commas; each is loaded when a request "
        "names it",
        group=ADDRESS,
    )
    tool_call_parser: str | None = option(
        None,
        f"how the model writes tool calls: {', '.join(FORMATS)} (default: as its chat template "
        "shows them)",
        group=ADDRESS,
    )
    max_loaded_models: int | None = option(
        None,
        "how many models may be in memory, the first one included; the one that is idle the "
        "longest makes room (default: all)",
        group=LIMITS,
    )
    max_queue: int = option(
        1024, "how many prompts and choices may wait; more get a 429", group=LIMITS
    )
    request_timeout_seconds: float | None = option(
        None, "the longest a request may take, waiting included (default: no limit)", group=LIMITS
    )
    max_body_bytes: int = option(8 * 1024**2, "largest request body, in bytes", group=LIMITS)
    grace_seconds: float = option(
        30.0, "how long running requests may continue after SIGTERM", group=LIMITS
    )
    shadow: str | None = option(
        None,
        "model folder or hub id, such as the dense model: it also answers a share of the requests, "
        "unseen by clients; /metrics and the end of the log say how far the answers agree",
        group=COMPARISON,
    )
    shadow_share: float | None = option(
        None,
        f"share of the requests that the shadow answers too, at most 1 (default: {DEFAULT_SHARE})",
        group=COMPARISON,
    )
    draft: str | None = option(
        None,
        "model folder or hub id, such as the pruned child of a dense model: it drafts what the "
        "first model then checks, which in fp32 changes no answer (speculative decoding)",
        group=SPEED,
    )
    log_format: str = option(
        "text", "format of the log: text, or json for one object per line", group=LOG
    )
    otlp_traces_endpoint: str | None = option(
        None,
        "collector that OpenTelemetry's traces of requests are sent to, such as "
        "http://localhost:4318/v1/traces (default: none)",
        group=LOG,
    )

    def __post_init__(self) -> None:
        if self.api_key == "":
            raise SgateError("the API key is empty; give one, or leave the option out")
        self._check_numbers()
        self._check_choices()
        self._check_addresses()

    def _check_numbers(self) -> None:
        if self.grace_seconds < 0:
            raise SgateError(f"grace_seconds is {self.grace_seconds}; it must be 0 or more")
        if self.shadow_share is not None and not 0 < self.shadow_share <= 1:
            raise SgateError(
                f"shadow_share is {self.shadow_share}; it must be above 0 and at most 1"
            )
        for name, of in (("shadow_share", "shadow"), ("max_loaded_models", "model")):
            if getattr(self, name) is not None and not getattr(self, of):
                raise SgateError(f"{flag_of(name)} has no effect without {flag_of(of)}")
        if self.max_loaded_models is not None and self.max_loaded_models < 2:
            raise SgateError(
                f"max_loaded_models is {self.max_loaded_models}; it must be at least 2, as the "
                "first model is always loaded"
            )
        for name in ("max_body_bytes", "max_queue", "request_timeout_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SgateError(f"{name} is {value}; it must be positive")

    def _check_choices(self) -> None:
        if self.log_format not in LOG_FORMATS:
            raise SgateError(
                f"log_format is {self.log_format!r}; it must be {' or '.join(LOG_FORMATS)}"
                f"{did_you_mean(self.log_format, LOG_FORMATS)}"
            )
        if self.tool_call_parser not in (None, *FORMATS):
            raise SgateError(
                f"tool_call_parser is {self.tool_call_parser!r}; it must be one of "
                f"{', '.join(FORMATS)}{did_you_mean(str(self.tool_call_parser), FORMATS)}"
            )

    def _check_addresses(self) -> None:
        endpoint = self.otlp_traces_endpoint
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise SgateError(
                f"{flag_of('otlp_traces_endpoint')} {endpoint}: give a URL, such as "
                "http://localhost:4318/v1/traces"
            )
        for origin in self.allow_origin:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise SgateError(
                    f"{flag_of('allow_origin')} {origin} is not a web origin; write it like "
                    "https://chat.example.com, without a path, or * for all"
                )
