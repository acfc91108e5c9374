"""The OpenAI-compatible server: requests and token events in, HTTP out; no engine by name."""

from sgate_serve.server.model import LoadedModel
from sgate_serve.server.options import ServerOptions
from sgate_serve.server.run import serve

__all__ = ["LoadedModel", "ServerOptions", "serve"]
