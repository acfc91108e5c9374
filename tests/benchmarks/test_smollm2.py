"""The table of SmolLM2: its texts from a Debian tree, and ratios worked out by hand."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality_tables import smollm2_rows, token_rows
from benchmarks.smollm2 import IN_DOMAIN, TRAIN, summary_of, write_texts


def test_texts_are_split_by_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    sources = root / "usr/share/doc/python3.11-doc/html/_sources/library"
    sources.mkdir(parents=True)
    for number in range(8):
        (sources / f"{number}.rst.txt").write_text(f"page {number}\n")
    (sources / "changelog.rst.txt").write_text("left out")
    book = root / "usr/share/doc/debian-handbook/html/en-US"
    book.mkdir(parents=True)
    (book / "a.html").write_text("<head><title>x</title></head><p>A &amp; <b>B</b></p>\n\n<p>C</p>")
    pages = root / "usr/share/man/man1"
    pages.mkdir(parents=True)
    page = '.\\" a comment\n.SH NAME\nls \\- list \\fBfiles\\fR\n'
    (pages / "ls.1.gz").write_bytes(gzip.compress(page.encode()))
    write_texts(tmp_path / "texts", root)
    texts = {path.stem: path.read_text() for path in (tmp_path / "texts").iterdir()}
    train, held_out = (texts[name].split("\f") for name in (TRAIN, IN_DOMAIN))
    assert sorted([*train, *held_out]) == [f"page {number}" for number in range(8)]
    assert len(held_out) == 1
    assert texts["handbook"] == "A & B\nC"
    assert texts["man_pages"] == "NAME\nls - list files"


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"_sources.*see --root"):
        write_texts(tmp_path / "texts", tmp_path)


def test_ratios_are_over_the_dense_model_of_the_same_seed() -> None:
    cells = [
        record("dense", 0, (10.0, 8.0), {"handbook": (30.0, 27.0), "man_pages": (20.0, 12.0)}),
        record("dense", 1, (10.0, 5.0), {"handbook": (30.0, 27.0), "man_pages": (20.0, 12.0)}),
        record(
            "default 30%", 0, (15.0, 10.0), {"handbook": (60.0, 54.0), "man_pages": (40.0, 24.0)}
        ),
        record(
            "default 30%", 1, (17.0, 10.0), {"handbook": (60.0, 54.0), "man_pages": (20.0, 12.0)}
        ),
    ]
    summary = summary_of(cells)
    own = summary["default 30%"]
    assert own["in_domain"] == pytest.approx((10 / 8 + 10 / 5) / 2)
    assert own["out_of_domain"] == pytest.approx((2 + 2**0.5) / 2)
    assert own["before_recovery"] == pytest.approx((1.5 + 1.7) / 2)
    assert own["before_recovery_out_of_domain"] == pytest.approx((2 + 2**0.5) / 2)
    assert summary["dense"]["in_domain"] == 1
    *_, dense, default = smollm2_rows({"cells": cells, "summary": summary})
    assert dense == "| dense | 10.00 | 8.00 | 27.00 | 12.00 | +0% | +0% |"
    assert default.startswith(
        "| default 30% (20% of all parameters) | 15.00 | 10.00 | 54.00 | 24.00"
    )
    assert default.endswith("| +62% | +71% |")
    options = {"steps": 30, "batch_size": 4, "seq_len": 256}
    made = {"cells": cells, "summary": summary, "options": options}
    *_, row = token_rows([made], "default 30%")
    assert row == "| 31 thousand tokens | 8.00 | 10.00 | +62% | +71% |"


def record(
    cell: str, seed: int, own: tuple[float, float], elsewhere: dict[str, tuple[float, float]]
) -> dict[str, Any]:
    def stages(values: tuple[float, float]) -> dict[str, Any]:
        before, after = ({"perplexity": {"value": value}} for value in values)
        return {"dense": before, "masked": before, "recovered": after}

    return {
        "cell": cell,
        "seed": seed,
        "removed": 0.0 if cell == "dense" else 0.3,
        "removed_overall": 0.2,
        "scores": stages(own),
        "scores_elsewhere": {name: stages(values) for name, values in elsewhere.items()},
    }
