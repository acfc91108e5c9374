"""What all endpoints share: the driver, the model it serves, and the metrics under its name."""

from collections.abc import Sequence

from starlette.requests import Request

from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.metrics import ServerMetrics
from sgate_serve.server.model import LoadedModel, Task


class Service:
    """One server; its metrics begin with the model, whose name they carry."""

    def __init__(self, driver: EngineDriver) -> None:
        self.driver = driver
        self._metrics: ServerMetrics | None = None

    @property
    def metrics(self) -> ServerMetrics:
        """The metrics; there must be a model."""
        if self._metrics is None:
            model = self.driver.loaded
            assert model is not None
            self._metrics = ServerMetrics(model.name, model.engine.max_model_len)
        return self._metrics

    def model_for(self, task: Task, request: Request) -> LoadedModel:
        """Return the model; raise RequestError 503 without one, 400 if its task is another."""
        model = self.driver.model
        model.check_task(task, request.url.path)
        return model


def log_usage(
    request: Request, model: str, tokens: tuple[int, int], finish_reasons: Sequence[str] = ()
) -> None:
    """Add to the request's log line what it cost: `tokens` of the prompts, and generated ones."""
    prompt_tokens, completion_tokens = tokens
    request.state.log.update(model=model, prompt_tokens=prompt_tokens)
    if finish_reasons:
        request.state.log.update(
            completion_tokens=completion_tokens, finish_reasons=list(finish_reasons)
        )
