"""Chat templates in their own process, which they can neither leave nor outlast."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgate_serve.text.template_worker import ChatTemplateError, TemplateWorker

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def worker() -> Iterator[TemplateWorker]:
    worker = TemplateWorker(job_seconds=1)
    yield worker
    worker.close()


def pid(worker: TemplateWorker) -> int:
    assert worker._process is not None
    return worker._process.pid


def test_one_process_starts_with_the_first_job_and_does_all(worker: TemplateWorker) -> None:
    assert worker._process is None
    assert worker.run("{{ a }}", None) == {"reads_parts": False, "reads_tools": False}
    first = pid(worker)
    assert worker.run("{{ a }}\né", {"a": "b\n🚀"}) == {"text": "b\n🚀\né"}
    with pytest.raises(ChatTemplateError, match="division by zero"):
        worker.run("{{ 1 / a }}", {"a": 0})
    assert pid(worker) == first


def test_modules_of_the_working_folder_are_not_run(
    worker: TemplateWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sgate_serve").mkdir()
    for name in ("json.py", "sgate_serve/__init__.py"):
        (tmp_path / name).write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert worker.run("{{ a }}", {"a": "b"}) == {"text": "b"}


@pytest.mark.parametrize(
    "source", [ENDLESS, "{{ 10 ** (a * 300000000) }}", "{{ 10 ** 300000000 }}"]
)
def test_template_that_does_not_end_is_ended(worker: TemplateWorker, source: str) -> None:
    start = time.monotonic()
    with pytest.raises(ChatTemplateError, match="it takes longer than 1 s"):
        worker.run(source, {"a": 1})
    assert time.monotonic() - start < 5
    assert worker.run("next", {}) == {"text": "next"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 'a' * (3000000000 + b) }}", "MemoryError"),
        ("{{ 'a' * (20000000 + b) }}", "it wrote 20000000 characters; at most 16777216 are read"),
    ],
)
def test_template_that_writes_too_much_is_refused(
    worker: TemplateWorker, source: str, message: str
) -> None:
    if sys.platform != "linux" and message == "MemoryError":
        pytest.skip("only Linux limits the memory of a process")
    with pytest.raises(ChatTemplateError, match=message):
        worker.run(source, {"b": 0})


def test_process_that_was_killed_starts_again(worker: TemplateWorker) -> None:
    worker.run("a", None)
    os.kill(pid(worker), signal.SIGKILL)
    for _ in range(2):
        try:
            assert worker.run("a", {}) == {"text": "a"}
        except ChatTemplateError as error:  # it died after it was found alive
            assert "its process ended with status -9" in str(error)


def test_process_ends_with_ours() -> None:
    program = (
        "from sgate_serve.text.template_worker import shared_worker; "
        "shared_worker().run('a', None); print(shared_worker()._process.pid)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20
    )
    assert (found.returncode, found.stderr) == (0, "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(found.stdout), 0)
