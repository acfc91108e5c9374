"""The ASGI application: routes, error bodies and what wraps them, around one engine driver."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from sgate_serve import __version__
from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.error_responses import install_handlers
from sgate_serve.server.middleware import ApiKey, BodyLimit
from sgate_serve.server.request_log import RequestLog
from sgate_serve.server.routes import create_router
from sgate_serve.server.server_options import ServerOptions


def create_app(driver: EngineDriver, options: ServerOptions) -> FastAPI:
    """Build the application; its lifespan starts the driver, which loads the model, and ends it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        driver.start()
        yield
        await driver.stop()

    app = FastAPI(title="sgate-serve", version=__version__, lifespan=lifespan)
    app.include_router(create_router(driver))
    install_handlers(app)
    # Each wraps those before it: the log sees everything, the key is asked before a body is read.
    app.add_middleware(BodyLimit, max_bytes=options.max_body_bytes)
    if options.api_key is not None:
        app.add_middleware(ApiKey, api_key=options.api_key)
    app.add_middleware(RequestLog)
    if options.allow_origin:
        # Outermost: a preflight carries no key, and refusals must be readable to the page too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.allow_origin,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app
