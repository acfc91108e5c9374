"""vLLM with settings that a test chooses, behind the adapter that compares it with the oracle."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.environment import cpu_ids

if TYPE_CHECKING:
    from sgate_serve.engines.vllm.engine import VllmEngine

SIZES: dict[str, Any] = {"max_num_seqs": 4, "kv_cache_memory_bytes": 2**26}


@contextmanager
def vllm_engine(
    folder: Path, arguments: Sequence[str] = (), *, in_process: bool = True, **settings: Any
) -> Iterator["VllmEngine"]:
    """Start vLLM on a folder and end it again; `arguments` are words of vLLM's command line."""
    from sgate_serve.engines.vllm.engine import EXACT, VllmEngine
    from sgate_serve.engines.vllm.start import engine_args, start_engine

    args = engine_args(folder, arguments, **{**SIZES, **EXACT, **settings})
    engine = VllmEngine(start_engine(args, in_process=in_process), Checkpoint.open(folder))
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def worker_engine(folder: Path, arguments: Sequence[str]) -> Iterator["VllmEngine"]:
    """Start vLLM in processes of its own, one core for each of two workers."""
    from sgate_serve.engines.vllm.start import environment

    first, *others = cpu_ids()
    cores = f"{first}|{(others or [first])[0]}"
    with (
        environment(OMP_NUM_THREADS="1", VLLM_CPU_OMP_THREADS_BIND=cores),
        vllm_engine(folder, arguments, in_process=False) as engine,
    ):
        yield engine
