"""What the server is given to serve: an engine with the text side of its model folder."""

from dataclasses import dataclass, field
from pathlib import Path

from sgate_serve.engines.base import Engine
from sgate_serve.errors import RequestError
from sgate_serve.tokenization import TextCodec, read_stop_token_ids


@dataclass(frozen=True)
class LoadedModel:
    """An engine ready to run, the name it is served under, and its codec if the folder has one."""

    engine: Engine
    name: str
    codec: TextCodec | None = None
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def from_folder(cls, engine: Engine, folder: Path, name: str | None = None) -> "LoadedModel":
        """Join an engine with the tokenizer files of `folder`, whose path is the default name."""
        codec = TextCodec.load(folder)
        return cls(engine, name or str(folder), codec, read_stop_token_ids(folder, codec))

    def check_name(self, requested: str | None) -> None:
        """Raise RequestError 404 unless the name, or its last path component, is meant."""
        if requested not in (None, self.name, Path(self.name).name):
            raise RequestError(
                f"the model {requested!r} is not served here; this server has {self.name!r}",
                param="model",
                status=404,
                code="model_not_found",
            )

    def require_codec(self, param: str) -> TextCodec:
        """Return the codec; raise RequestError naming `param`, which needs it, if there is none."""
        if self.codec is None:
            raise RequestError(
                f"`{param}` needs a tokenizer and this model has none; put the base model's "
                "tokenizer.json into the model folder, or send token ids to /v1/completions",
                param=param,
            )
        return self.codec
