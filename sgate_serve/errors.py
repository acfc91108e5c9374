"""Errors that a user can cause, one class per part of the product.

The command line prints the message on one line and exits 2; the server turns `RequestError` into
an OpenAI error body. Any other exception is a bug and keeps its traceback.
"""


class SgateError(Exception):
    """Base of all errors that a user can fix; the message says what, where, and what to do."""


class CheckpointError(SgateError):
    """A model folder is missing, truncated, malformed or of an unsupported family."""


class GatesError(SgateError):
    """A gates folder is malformed or belongs to another base model."""


class PlanError(SgateError):
    """A plan cannot be made, or a stored plan is malformed."""


class EngineError(SgateError):
    """An engine is missing, cannot load the model, or lacks what was requested."""


class TrainingError(SgateError):
    """Training cannot start or cannot reach its target, because of data, options or packages."""


class RequestError(SgateError):
    """A request that the server or an engine rejects.

    `param` names the offending field, `status` is the HTTP status, `code` is OpenAI's error code.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code
