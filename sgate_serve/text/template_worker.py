"""Runs chat templates in a process of their own, which a template cannot leave or outlast.

The process starts with the first job, and again after a job that ended it.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from threading import Lock
from typing import Any

from sgate_serve.text.template_process import JOB_SECONDS


class ChatTemplateError(Exception):
    """A template cannot be compiled or rendered; the message says why, on one line."""


class TemplateWorker:
    """One process that does one job after the other, for any thread that asks."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def run(self, source: str, variables: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return `text`, the rendered template, or `reads_parts` if there are no variables.

        Raises ChatTemplateError, at the latest after JOB_SECONDS.
        """
        job = json.dumps({"source": source, "variables": variables}).encode() + b"\n"
        with self._lock:
            line = self._exchange(job)
            if not line.endswith(b"\n"):
                raise ChatTemplateError(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChatTemplateError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process, also in the middle of a job."""
        process = self._process
        if process is not None:
            process.kill()
            process.communicate()

    def _exchange(self, job: bytes) -> bytes:
        """Return the line that answers a job, incomplete if the process ended."""
        if self._process is None or self._process.poll() is not None:
            self._process = _start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(job)
            self._process.stdin.flush()
            return self._process.stdout.readline()
        except BrokenPipeError:
            return b""
        except BaseException:  # an interrupt, after which its answer belongs to nobody
            self._process.kill()
            raise

    def _end(self) -> str:
        """Reap a process that did not answer, and return the reason."""
        assert self._process is not None
        status = self._process.wait()
        self._process = None
        if status == -signal.SIGALRM:
            return f"it takes longer than {JOB_SECONDS:g} s"
        return f"its process ended with status {status}"


@cache
def shared_worker() -> TemplateWorker:
    """Return the worker of all templates of this process."""
    return TemplateWorker()


def _start() -> "subprocess.Popen[bytes]":
    # In a session of its own, so that Ctrl-C reaches only us.
    return subprocess.Popen(
        [sys.executable, "-m", "sgate_serve.text.template_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
