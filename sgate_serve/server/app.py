"""The ASGI application around a server's models: routes, error handlers and middleware."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from sgate_serve import __version__
from sgate_serve.server.error_responses import install_handlers
from sgate_serve.server.middleware import ApiKey, BodyLimit, Deadline, Drain
from sgate_serve.server.openapi import state_responses
from sgate_serve.server.request_log import RequestLog
from sgate_serve.server.routes.models import Leases, Models
from sgate_serve.server.routes.router import create_router
from sgate_serve.server.server_options import ServerOptions
from sgate_serve.server.tracing import Tracing, start_tracing, stop_tracing
from sgate_serve.text.template_worker import shared_worker


def create_app(models: Models, options: ServerOptions) -> FastAPI:
    """Build the application; its lifespan starts and stops the drivers, which load the models.

    Raises SgateError for traces without their extra.
    """
    driver, shadow = models.first.driver, models.first.shadow
    endpoint = options.otlp_traces_endpoint
    traces = None if endpoint is None else start_tracing(endpoint)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        driver.start()
        if shadow is not None:
            shadow.driver.start()
        try:
            yield
        finally:  # also after a second Ctrl-C, which cancels this
            if shadow is not None:
                shadow.report()
        shared_worker().cancel()  # else the process would wait for a template that does not end
        if shadow is not None:
            await shadow.stop()
        await models.stop()
        if traces is not None:
            await asyncio.to_thread(stop_tracing, traces)

    app = FastAPI(title="sgate-serve", version=__version__, lifespan=lifespan)
    app.include_router(create_router(models))
    state_responses(app, options)
    install_handlers(app)
    # Each wraps those added before it: the log sees every request, and the key is checked before a
    # body is read.
    app.add_middleware(BodyLimit, max_bytes=options.max_body_bytes)
    app.add_middleware(Leases)
    if options.api_key is not None:
        app.add_middleware(ApiKey, api_key=options.api_key)
    app.add_middleware(Drain)
    app.add_middleware(Deadline, driver=driver)
    if traces is not None:
        app.add_middleware(Tracing, provider=traces)
    app.add_middleware(RequestLog)
    if options.allow_origin:
        # Outermost, as a preflight carries no key and the page must be able to read errors.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.allow_origin,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app
