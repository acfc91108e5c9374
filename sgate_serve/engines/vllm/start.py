"""Starting vLLM from here: its settings from our words, and what its CPU build is told besides.

vLLM's CPU build takes half of the cores and a KV cache of its own choice unless told otherwise, and
it is told by the environment.
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

from sgate_serve.environment import cpu_ids
from sgate_serve.errors import EngineError

logger = logging.getLogger(__name__)

# vLLM on CPU binds threads to cores, in this process too if it runs here.
UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class _Parser(FlexibleArgumentParser):
    """vLLM's own parser, raising our error instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise EngineError(f"vLLM: {message}; `vllm serve --help=all` lists its options")


def engine_args(folder: Path, arguments: Sequence[str], **defaults: Any) -> EngineArgs:
    """Return vLLM's settings for a folder: the defaults, overridden by words of its command line.

    Raises EngineError for a word that vLLM does not know.
    """
    parser = EngineArgs.add_cli_args(_Parser())
    parser.set_defaults(model=str(folder), **defaults)
    return EngineArgs.from_cli_args(parser.parse_args(list(arguments)))


def start_engine(args: EngineArgs, *, in_process: bool) -> LLMEngine:
    """Start vLLM: its core in a process of its own, or in this one, where each step is ours.

    Raises EngineError with vLLM's reason where it refuses the model or a setting.
    """
    # vLLM's advice on settings is for servers; its children read the variable.
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(level)
    here = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **UNBOUND} if in_process else {}
    with environment(**here):
        try:
            config = args.create_engine_config()
            return LLMEngine(
                config,
                executor_class=Executor.get_class(config),
                log_stats=True,
                multiprocess_mode=not in_process,
            )
        # NotImplementedError is vLLM's answer to settings that it lacks, or lacks on this platform.
        except (ValueError, NotImplementedError) as error:
            raise EngineError(f"vLLM refuses {args.model}: {error}") from error


def stop_engine(engine: LLMEngine) -> None:
    """End the engine's processes, or give its memory and its groups of processes back."""
    engine.engine_core.shutdown()


def use_cpus() -> None:
    """Let vLLM's processes on CPU use all of this one's cores, unless the caller chose."""
    cpus = cpu_ids()
    os.environ.setdefault("OMP_NUM_THREADS", str(len(cpus)))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(str(cpu) for cpu in cpus))


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables for as long as the block runs: vLLM reads some of its settings there only."""
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


def has_gpu() -> bool:
    """Say whether vLLM, as it is installed here, finds a GPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda_alike() or current_platform.is_xpu())
