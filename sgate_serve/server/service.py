"""What all endpoints share: the driver, the model it serves, and the metrics under its name."""

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
