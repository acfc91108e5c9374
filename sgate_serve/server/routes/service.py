"""The state that all endpoints share: the driver, its model, and the metrics."""

from starlette.requests import Request

from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.prometheus import ServerMetrics
from sgate_serve.server.served_model import ServedModel, ServedTask


class Service:
    """The driver and metrics of one server; the metrics carry the model's name."""

    def __init__(self, driver: EngineDriver) -> None:
        self.driver = driver
        self._metrics: ServerMetrics | None = None

    @property
    def metrics(self) -> ServerMetrics:
        """The metrics; a model must be loaded."""
        if self._metrics is None:
            model = self.driver.loaded
            assert model is not None
            self._metrics = ServerMetrics(model.name, model.engine.max_model_len)
        return self._metrics

    def model_for(self, task: ServedTask, request: Request) -> ServedModel:
        """Return the model; raise RequestError 503 if there is none, 400 if its task differs."""
        model = self.driver.model
        model.check_task(task, request.url.path)
        return model
