"""Start vLLM from this process: its settings from command-line words, and from the environment.

Unless environment variables say otherwise, vLLM's CPU build takes half of the cores.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor

from sgate_serve.engines.vllm.reading import config_overrides
from sgate_serve.environment import cpu_ids
from sgate_serve.errors import EngineError

logger = logging.getLogger(__name__)

# vLLM on CPU binds threads to cores, including those of this process if it runs here.
UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class _Parser(FlexibleArgumentParser):
    """vLLM's own parser, which raises EngineError instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise EngineError(f"vLLM: {message}; `vllm serve --help=all` lists its options")


def engine_args(folder: Path, arguments: Sequence[str], **defaults: Any) -> EngineArgs:
    """Return vLLM's settings for a folder: `defaults`, overridden by command-line words.

    Raises EngineError for words that vLLM does not know.
    """
    parser = EngineArgs.add_cli_args(_Parser())
    overrides = config_overrides(folder, arguments)
    parser.set_defaults(model=str(folder), hf_overrides=overrides, **defaults)
    return EngineArgs.from_cli_args(parser.parse_args(list(arguments)))


def start_engine(
    args: EngineArgs, *, in_process: bool, spares_transformers: bool = False
) -> LLMEngine:
    """Start vLLM with its core in a separate process or, stepped by the caller, in this one.

    Raises EngineError with vLLM's reason if it rejects the model or a setting, and, for a caller
    that `spares_transformers`, if vLLM would change transformers' classes to run the model.
    """
    # vLLM's hints on settings are meant for servers; its child processes read the variable.
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(level)
    here = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **UNBOUND} if in_process else {}
    with environment(**here):
        try:
            config = args.create_engine_config()
            if spares_transformers and config.model_config.using_transformers_backend():
                raise EngineError(
                    f"{args.model}: vLLM runs this model by transformers' own classes, which it "
                    "changes, so nothing is left to compare it with; choose another engine"
                )
            return LLMEngine(
                config,
                executor_class=Executor.get_class(config),
                log_stats=True,
                multiprocess_mode=not in_process,
            )
        # vLLM raises NotImplementedError for settings that it lacks, or lacks on this platform.
        except (ValueError, NotImplementedError) as error:
            raise EngineError(f"vLLM refuses {args.model}: {error}") from error


def stop_engine(engine: LLMEngine) -> None:
    """End the engine's processes; in this process, free its memory and its process groups."""
    engine.engine_core.shutdown()


def use_cpus() -> None:
    """Let vLLM's CPU processes use all cores of this one, unless the user has set them."""
    cpus = cpu_ids()
    os.environ.setdefault("OMP_NUM_THREADS", str(len(cpus)))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(str(cpu) for cpu in cpus))


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables while the block runs; some of vLLM's settings exist only there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
