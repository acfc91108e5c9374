"""What endpoints need of one model: its driver, its metrics and its chat template."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry
from starlette.requests import Request

from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.prometheus import ServerMetrics
from sgate_serve.server.protocol.chat_messages import Message
from sgate_serve.server.served_model import ServedModel, ServedTask
from sgate_serve.server.shadow.shadow import Shadow
from sgate_serve.text.chat_template import ChatOptions


class Service:
    """The driver, shadow and metrics of one model; the metrics carry its name."""

    def __init__(self, driver: EngineDriver, shadow: Shadow | None = None) -> None:
        self.driver, self.shadow = driver, shadow
        self._metrics: ServerMetrics | None = None
        # Whether the log says why the model could not be loaded.
        self.is_reported = False
        # A thread of its own, so that a slow template keeps only chats waiting.
        self._renderer = ThreadPoolExecutor(1, "chat template")

    @property
    def metrics(self) -> ServerMetrics:
        """The metrics; a model must be loaded."""
        if self._metrics is None:
            model = self.driver.loaded
            assert model is not None
            self._metrics = ServerMetrics(model.name, model.engine.max_model_len)
        return self._metrics

    def counted(self) -> CollectorRegistry:
        """Return the metrics, with what the engine says now."""
        self.metrics.update(self.driver.stats)
        return self.metrics.registry

    def model_for(self, task: ServedTask, request: Request) -> ServedModel:
        """Return the model; raise RequestError 503 if there is none, 400 if its task differs."""
        model = self.driver.model
        model.check_task(task, request.url.path)
        return model

    async def render(
        self, messages: Sequence[Message], options: ChatOptions, model: ServedModel
    ) -> str:
        """Return a conversation as text; raise RequestError if the chat template refuses it.

        If cancelled, it leaves the queue of the templates.
        """
        codec = model.require_codec("messages")
        if options.tools is not None:
            model.check_shows_tools()
        variables = [message.variables for message in messages]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._renderer, codec.render_chat, variables, options)
