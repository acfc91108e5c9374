"""The OpenAI-compatible HTTP server over one loaded engine; it knows no engine by name.

`lifecycle` runs the process and `app` builds the ASGI application. A request comes over a
`connection` and passes through `request_log` and `middleware` to an endpoint in `routes`, which
validates its body against `protocol`, runs it with `execution` on the engine thread (`driver`), and
writes the response in the shapes of `protocol`. Nothing that grows with a request runs on the event
loop.
"""

from sgate_serve.server.lifecycle import serve
from sgate_serve.server.served_model import ServedModel, ServedNames
from sgate_serve.server.server_options import ServerOptions

__all__ = ["ServedModel", "ServedNames", "ServerOptions", "serve"]
