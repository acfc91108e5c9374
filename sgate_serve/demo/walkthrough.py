"""Runs the demonstration stage by stage and reports the results."""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sgate_serve.bench.comparison import comparison_lines
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.demo.sizes import DemoOptions, DemoSizes, RealSizes
from sgate_serve.demo.stages import (
    COMPARE_FILE,
    PERPLEXITY_FILE,
    SERVED_FILE,
    SHAPE_COMPARE_FILE,
    Demo,
    Stage,
    page_of,
    say,
    write_json,
)
from sgate_serve.errors import SgateError
from sgate_serve.json_fields import read_json
from sgate_serve.progress import activity, duration
from sgate_serve.reports.inspection import Inspection
from sgate_serve.verify.certificate import CERTIFICATE_FILE

REPORT_FILE = "report.json"
SIZES_FILE = "sizes.json"


def demo(options: DemoOptions) -> Path:
    """Run every stage that is not done yet and return the path of `report.json`.

    Raises SgateError if the folder holds a demo of another size.
    """
    folder, sizes = options.folder, options.sizes
    check_sizes(folder, sizes)
    with activity("loading torch and transformers", is_brief=True):
        from sgate_serve.training.quiet import quiet_libraries

    if isinstance(sizes, RealSizes):
        from sgate_serve.demo import real

        stages, reported, lines = real.RealDemo(folder, sizes).stages, real.make_report, real.lines
    else:
        stages, reported, lines = Demo(folder, sizes).stages, make_report, report_lines
    with quiet_libraries(), quiet_logs():
        run_stages(stages)
    report = reported(folder)
    write_json(folder / REPORT_FILE, report)
    for line in lines(folder, report):
        say(line)
    return folder / REPORT_FILE


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Within the context, our own packages log no settings: the demo says what it does."""
    loggers = [logging.getLogger(package) for package in ("sgate_serve", "converters")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def run_stages(stages: Sequence[Stage]) -> None:
    """Run the stages that are not done yet, and say what happens to each."""
    for number, stage in enumerate(stages, 1):
        label = f"[{number}/{len(stages)}] {stage.title}"
        if stage.is_done:
            say(f"{label}: already done, in {stage.result}")
            continue
        say(label)
        started = time.monotonic()
        stage.run()
        say(f"  done in {duration(time.monotonic() - started)}")


def check_sizes(folder: Path, sizes: DemoSizes | RealSizes) -> None:
    """Record the sizes in a new folder; raise SgateError if it was started with others."""
    path = folder / SIZES_FILE
    wanted = json.loads(json.dumps(asdict(sizes)))
    if path.exists():
        if read_json(path) != wanted:
            raise SgateError(
                f"{folder} holds a demo of another size; remove it or give another --dir"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def make_report(folder: Path) -> dict[str, Any]:
    """Combine the stages' records into `report.json`, whose keys are part of the CLI contract."""
    inspection = Inspection.of(folder / "pruned").to_json()
    small, shape = read_json(folder / COMPARE_FILE), read_json(folder / SHAPE_COMPARE_FILE)
    certificate = read_json(folder / "pruned" / CERTIFICATE_FILE)
    wanted = ("engine", "engine_version", "max_abs_diff", "tokens_equal", "num_tokens", "passed")
    return {
        "removed": inspection["removed"],
        "removed_overall": inspection["removed_overall"],
        "parameters": {
            name: Checkpoint.open(folder / name).spec.num_parameters for name in ("dense", "pruned")
        },
        "bytes": {name: Checkpoint.open(folder / name).num_bytes for name in ("dense", "pruned")},
        "perplexity": read_json(folder / PERPLEXITY_FILE),
        "gates": read_json(folder / "gates" / "metrics.json"),
        "verification": {key: certificate[key] for key in wanted},
        "served": read_json(folder / SERVED_FILE),
        "speedups": small["speedups"],
        "floor": small["floor"],
        "comparison": small,
        "shape_comparison": {"weights": "random", **shape},
    }


def report_lines(folder: Path, report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report as lines of text."""
    sizes, perplexity = report["bytes"], report["perplexity"]
    checked = report["verification"]
    masked = report["gates"]["scores"]["masked"]["perplexity"]["value"]
    yield ""
    yield (
        f"removed          {report['removed']:.1%} of the block linears, "
        f"{report['removed_overall']:.1%} of all parameters"
    )
    yield f"bytes            {sizes['dense']:,} dense, {sizes['pruned']:,} pruned"
    yield (
        f"perplexity       {perplexity['dense']:.1f} dense, {masked:.1f} masked, "
        f"{perplexity['pruned']:.1f} after recovery on the same text (held-out files)"
    )
    yield (
        f"verified         {checked['engine']} {checked['engine_version']}: max abs logit "
        f"difference {checked['max_abs_diff']:.1e}, {checked['tokens_equal']} of "
        f"{checked['num_tokens']} tokens equal"
    )
    for kind, answer in report["served"].items():
        yield f"{kind:<17}{answer['prompt']!r} -> {answer['text']!r}"
    yield ""
    yield "speed of the model trained here (it sits in the CPU's cache):"
    yield from comparison_lines(report["comparison"])
    yield ""
    yield "the same fractions per layer at hidden 896, RANDOM weights, for speed alone:"
    yield from comparison_lines(report["shape_comparison"])
    yield ""
    # Earlier releases wrote no pages.
    if "explanation" in report["comparison"]:
        pages = (str(page_of(folder / name)) for name in (COMPARE_FILE, SHAPE_COMPARE_FILE))
        yield f"where the time goes: {' and '.join(pages)}"
    yield f"report: {folder / REPORT_FILE}; serve it: sgate serve {folder / 'pruned'}"
