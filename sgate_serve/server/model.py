"""What the server is given to serve: an engine with the text side of its model folder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from sgate_serve.engines.base import EngineStats, PooledOutput, TokenEvent
from sgate_serve.errors import RequestError
from sgate_serve.server.labels import Labels
from sgate_serve.text.tokenization import TextCodec, read_stop_token_ids

Task = Literal["generate", "embed", "classify"]
# What a folder of each task holds, and where it is asked.
SERVED_AT: Mapping[Task, tuple[str, str]] = {
    "generate": ("a generative model", "/v1/completions or /v1/chat/completions"),
    "embed": ("an embedding model", "/v1/embeddings"),
    "classify": ("a classifier", "/classify"),
}


class AnyEngine(Protocol):
    """What `engines.base.Engine` and `PoolingEngine` share; the task says which one it is."""

    name: str
    max_model_len: int
    vocab_size: int

    def add(self, request: Any) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def step(self) -> Sequence[TokenEvent] | Sequence[PooledOutput]: ...

    def has_work(self) -> bool: ...

    def stats(self) -> EngineStats: ...


@dataclass(frozen=True)
class LoadedModel:
    """An engine ready to run, the name it is served under, and its codec if the folder has one.

    `labels` are a classifier's. With `normalize` an embedding is scaled to length 1; whoever
    loads the model knows whether it is meant so.
    """

    engine: AnyEngine
    name: str
    codec: TextCodec | None = None
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    task: Task = "generate"
    labels: Labels | None = None
    normalize: bool = False

    @classmethod
    def from_folder(
        cls,
        engine: AnyEngine,
        folder: Path,
        task: Task = "generate",
        *,
        name: str | None = None,
        labels: Labels | None = None,
        normalize: bool = False,
    ) -> "LoadedModel":
        """Join an engine with the text files of `folder`, whose path is the default name.

        A classifier needs its labels. Raises CheckpointError for files that cannot be read.
        """
        codec = TextCodec.load(folder)
        return cls(
            engine,
            name or str(folder),
            codec,
            read_stop_token_ids(folder, codec),
            task,
            labels,
            normalize,
        )

    def check_task(self, task: Task, path: str) -> None:
        """Raise RequestError naming the right endpoint unless the model can be asked at `path`."""
        if task != self.task:
            kind, endpoint = SERVED_AT[self.task]
            raise RequestError(
                f"{path} needs {SERVED_AT[task][0]}, but {self.name!r} is {kind}; ask it at "
                f"{endpoint}",
                code="wrong_endpoint",
            )

    def check_name(self, requested: str | None) -> None:
        """Raise RequestError 404 unless the name, or its last path component, is meant."""
        if requested not in (None, self.name, Path(self.name).name):
            raise RequestError(
                f"the model {requested!r} is not served here; this server has {self.name!r}",
                param="model",
                status=404,
                code="model_not_found",
            )

    def check_ids(self, tokens: Iterable[int], param: str) -> None:
        """Raise RequestError naming `param` unless all are ids of this model's vocabulary."""
        size = self.engine.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise RequestError(
                    f"`{param}` has the token id {token}; this model's ids are 0 to {size - 1}",
                    param=param,
                )

    def require_codec(self, param: str) -> TextCodec:
        """Return the codec; raise RequestError naming `param`, which needs it, if there is none."""
        if self.codec is None:
            raise RequestError(
                f"`{param}` needs a tokenizer and this model has none; put the base model's "
                f"tokenizer.json into the model folder, or send token ids to {self._takes_ids}",
                param=param,
            )
        return self.codec

    @property
    def _takes_ids(self) -> str:
        return "/v1/completions" if self.task == "generate" else SERVED_AT[self.task][1]
