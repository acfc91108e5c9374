"""The model that is served: an engine with the tokenizer and labels of its model folder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from sgate_serve.engines.contract import EngineStats, PooledOutput, TokenEvent
from sgate_serve.errors import RequestError
from sgate_serve.server.classifier_head import ClassifierHead
from sgate_serve.server.excerpt import excerpt
from sgate_serve.text.grammars import GrammarCompiler
from sgate_serve.text.pooling import Pooling
from sgate_serve.text.tokenization import TextCodec, read_stop_token_ids
from sgate_serve.text.tool_formats import FORMATS, ToolFormat

ServedTask = Literal["generate", "embed", "classify"]
# Task → the kind of model, and its endpoints.
SERVED_AT: Mapping[ServedTask, tuple[str, str]] = {
    "generate": ("a generative model", "/v1/completions or /v1/chat/completions"),
    "embed": ("an embedding model", "/v1/embeddings"),
    "classify": ("a classifier", "/classify"),
}

# Characters that are tokenized for any model, and where a text may be longer than the model's.
SHORT_TEXT, LONG_TEXT = 2**16, 2**20


class AnyEngine(Protocol):
    """The common interface of `engines.contract.Engine` and `PoolingEngine`."""

    name: str
    max_model_len: int
    vocab_size: int

    def add(self, request: Any) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def step(self) -> Sequence[TokenEvent] | Sequence[PooledOutput]: ...

    def has_work(self) -> bool: ...

    def stats(self) -> EngineStats: ...


@dataclass(frozen=True)
class ServedNames:
    """The names that a model is listed under, and aliases that requests may use as well."""

    listed: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    @classmethod
    def of(cls, location: str, chosen: Sequence[str] = ()) -> "ServedNames":
        """Return the `chosen` names of a model folder or hub id, or else those of its location.

        A folder has its own name, and its path as an alias; a hub id also goes by its last part.
        """
        if chosen:
            return cls(tuple(dict.fromkeys(chosen)))
        path = Path(location)
        if not path.is_dir():
            return cls((location,), (path.name,))
        # The path may be `.` or end in a slash.
        name = path.resolve().name or location
        return cls((name,), tuple(dict.fromkeys((location, str(path), str(path.resolve())))))


@dataclass(frozen=True)
class ServedModel:
    """A loaded engine, the name it is served under, and its codec if the folder has a tokenizer.

    Responses carry `name`. Requests may also use `more_names`, which are listed too, and `aliases`.
    Only a classifier has a `head`. Embeddings are of `prompt`, or that of the `prompts` that a
    request names, and the text; with `normalize`, they are scaled to length 1; they can be cut to
    one of `widths`, or to any width if there are none.
    `tool_call_parser` overrides the format that the chat template shows.
    """

    engine: AnyEngine
    name: str
    codec: TextCodec | None = None
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    task: ServedTask = "generate"
    head: ClassifierHead | None = None
    normalize: bool = False
    prompt: str = ""
    more_names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    tool_call_parser: str | None = None
    widths: tuple[int, ...] | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_folder(
        cls,
        engine: AnyEngine,
        folder: Path,
        task: ServedTask = "generate",
        *,
        names: ServedNames | None = None,
        head: ClassifierHead | None = None,
        pooling: Pooling | None = None,
    ) -> "ServedModel":
        """Combine an engine with the text files of `folder`, after which it is named by default.

        A classifier needs its head, an embedding model its pooling. Raises CheckpointError for
        files that cannot be read.
        """
        codec, pooling = TextCodec.load(folder), pooling or Pooling()
        if codec is not None and pooling.lower_case:
            codec = codec.lower_cased()
        names = names or ServedNames.of(str(folder))
        first, *others = names.listed
        return cls(
            engine,
            first,
            codec,
            read_stop_token_ids(folder, codec),
            task,
            head,
            pooling.normalize,
            pooling.prompt,
            tuple(others),
            names.aliases,
            widths=pooling.widths,
            prompts=pooling.prompts,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which the model is listed."""
        return (self.name, *self.more_names)

    def check_task(self, task: ServedTask, path: str) -> None:
        """Raise RequestError naming the right endpoint unless the model has this task."""
        if task != self.task:
            kind, endpoint = SERVED_AT[self.task]
            raise RequestError(
                f"{path} needs {SERVED_AT[task][0]}, but {self.name!r} is {kind}; ask it at "
                f"{endpoint}",
                code="wrong_endpoint",
            )

    def has_name(self, requested: str) -> bool:
        """Say whether this is a name of the model, or the last part of one."""
        short = (Path(name).name for name in self.names)
        return requested in (*self.names, *self.aliases, *short)

    def check_text(self, text: str, param: str, least: int = SHORT_TEXT) -> None:
        """Raise RequestError naming `param` if a text is too long to be tokenized.

        Tokenizing takes a hundred bytes for each character. Texts of up to `least` characters pass.
        """
        limit = self.engine.max_model_len
        longest = max(least, self.require_codec(param).max_characters(limit))
        if len(text) > longest:
            raise RequestError(
                f"the prompt is too long: `{param}` has {len(text)} characters; this model's "
                f"maximum context length is {limit} tokens, so at most {longest} characters are "
                "read",
                param=param,
                code="context_length_exceeded",
            )

    def check_ids(self, tokens: Iterable[int], param: str) -> None:
        """Raise RequestError naming `param` unless all tokens are in the model's vocabulary."""
        size = self.engine.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise RequestError(
                    f"`{param}` has the token id {excerpt(token)}; this model's ids are 0 to "
                    f"{size - 1}",
                    param=param,
                )

    def require_codec(self, param: str) -> TextCodec:
        """Return the codec; raise RequestError naming `param` if there is none."""
        if self.codec is None:
            raise RequestError(
                f"`{param}` needs a tokenizer and this model has none; put the base model's "
                f"tokenizer.json into the model folder, or send token ids to {self._takes_ids}",
                param=param,
            )
        return self.codec

    def check_shows_tools(self) -> None:
        """Raise RequestError if the model has a chat template that shows no tools."""
        template = self.require_codec("tools").chat_template
        if template is not None and not template.shows_tools:
            raise RequestError(
                f"the chat template of {self.name!r} does not show `tools`, so the model cannot "
                "call them; put a chat_template.jinja with tools into the model folder, or leave "
                "`tools` out",
                param="tools",
            )

    @property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes tool calls; None if it shows no tools, or nothing says how."""
        template = None if self.codec is None else self.codec.chat_template
        if template is None or not template.shows_tools:
            return None
        return FORMATS.get(self.tool_call_parser or "", template.tool_format)

    def require_tool_format(self) -> ToolFormat:
        """Return how the model writes tool calls; raise RequestError if nothing says so."""
        own = self.tool_format
        if own is None:
            raise RequestError(
                f"the chat template of {self.name!r} shows tools, but not in a known format of "
                f"calls; start the server with --tool-call-parser {'|'.join(FORMATS)}, or send "
                "`tool_choice: none`",
                param="tools",
            )
        return own

    def grammar_compiler(self, param: str) -> GrammarCompiler:
        """Return the compiler of grammars; raise RequestError naming `param` without a codec."""
        self.require_codec(param)
        return self._grammars

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        assert self.codec is not None
        return GrammarCompiler(self.codec, self.engine.vocab_size)

    @property
    def _takes_ids(self) -> str:
        return "/v1/completions" if self.task == "generate" else SERVED_AT[self.task][1]
