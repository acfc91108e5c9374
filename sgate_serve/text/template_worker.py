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

# A template of a conversation takes milliseconds.
JOB_SECONDS = 5.0


class ChatTemplateError(Exception):
    """A template cannot be compiled or rendered; the message says why, on one line."""


class TemplateWorker:
    """One process that does one job after the other, for any thread that asks.

    A job that takes longer than `job_seconds` fails.
    """

    def __init__(self, job_seconds: float = JOB_SECONDS) -> None:
        self._job_seconds = job_seconds
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def run(self, source: str, variables: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return `text`, the rendered template, or what it reads if there are no variables.

        Raises ChatTemplateError, also for a template that does not end.
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

    def cancel(self) -> None:
        """Let the job that runs now fail, if there is one; for any thread."""
        if self._lock.locked() and self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the process; no job may be running."""
        if self._process is not None:
            self._process.kill()
            self._end()

    def _exchange(self, job: bytes) -> bytes:
        """Return the line that answers a job, incomplete if the process ended."""
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._process = self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(job)
            self._process.stdin.flush()
            return self._process.stdout.readline()
        except BrokenPipeError:
            return b""
        except BaseException:  # an interrupt, after which its answer belongs to nobody
            self.close()
            raise

    def _start(self) -> "subprocess.Popen[bytes]":
        module = "sgate_serve.text.template_process"
        return subprocess.Popen(
            # -P: whatever lies in the working folder is none of our modules.
            [sys.executable, "-P", "-m", module, str(self._job_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # so that Ctrl-C reaches only us
        )

    def _end(self) -> str:
        """Reap a process that has ended, or is about to, and return the reason."""
        assert self._process is not None
        self._process.communicate()  # closes the pipes too
        status, self._process = self._process.returncode, None
        if status == -signal.SIGALRM:
            return f"it takes longer than {self._job_seconds:g} s"
        return f"its process ended with status {status}"


@cache
def shared_worker() -> TemplateWorker:
    """Return the worker of all templates of this process."""
    return TemplateWorker()
