"""The OpenAI-compatible server: requests and token events in, HTTP out; no engine by name."""

from sgate_serve.server.lifecycle import serve
from sgate_serve.server.model import LoadedModel
from sgate_serve.server.server_options import ServerOptions

__all__ = ["LoadedModel", "ServerOptions", "serve"]
