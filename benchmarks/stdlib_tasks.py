"""Two labelled tasks made from the sources of Python's standard library, split by file.

`python -m benchmarks.stdlib_tasks --dir DIR` writes `packages/{train,eval}.jsonl` (which of 20
parts of the library does a snippet come from?) and `docstrings/{train,eval}.jsonl` (does this
docstring belong to this function?). The same interpreter produces the same bytes. A negative pair
takes the docstring of another function in the same file, so that the file's subject does not give
it away.
"""

import argparse
import ast
import hashlib
import json
import random
import re
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.commands.flags import add_flags, options_from
from sgate_serve.options import option

# Modules of each part; their tests belong to it too.
PARTS: Mapping[str, str] = {
    "asyncio": "asyncio",
    "email": "email smtplib imaplib poplib mailbox mailcap nntplib smtpd",
    "http": "http urllib wsgiref xmlrpc socketserver cgi cgitb ftplib robotparser urlparse",
    "sockets": "ssl socket select selectors poll asyncore asynchat ipaddress telnetlib epoll",
    "markup": "xml html htmlparser minidom sax pulldom pyexpat plistlib",
    "windows": "tkinter tk ttk turtle turtledemo idlelib curses",
    "testing": "unittest doctest trace support libregrtest regrtest",
    "settings": "logging configparser argparse optparse getopt warnings cmd",
    "concurrency": "multiprocessing concurrent threading thread queue sched subprocess lock fork",
    "ctypes": "ctypes struct buffer memoryview array capi bytes",
    "imports": "importlib import zipimport pkgutil runpy modulefinder site sysconfig compileall",
    "packaging": "distutils ensurepip venv",
    "syntax": "lib2to3 ast tokenize dis inspect symtable opcode grammar parser syntax patma code",
    "dates": "datetime datetimetester calendar zoneinfo time strptime strftime",
    "numbers": "decimal pydecimal fractions statistics random colorsys math cmath float int",
    "files": "os pathlib shutil glob fnmatch tempfile filecmp posixpath ntpath genericpath stat",
    "archives": "tarfile zipfile gzip bz2 lzma zlib shelve dbm sqlite3",
    "text": "codecs codec codeccallbacks locale gettext io pyio csv textwrap difflib re json",
    "types": "typing dataclasses enum abc functools collections contextlib types descr weakref",
    "debugging": "pdb bdb profile cProfile pstats timeit tracemalloc traceback pydoc sys frame gc",
}
PART_OF = {module: part for part, modules in PARTS.items() for module in modules.split()}

HELD_OUT_SHARE = 0.25
MIN_CHARACTERS, MAX_CHARACTERS = 80, 400
MAX_PER_FILE = 60  # so that long files do not dominate


@dataclass(frozen=True)
class TaskOptions:
    """The output folder and the number of examples."""

    dir: Path = option(Path("stdlib-tasks"), "new folder for both tasks")
    train_per_part: int = option(400, "training snippets of each part at most")
    eval_per_part: int = option(100, "held-out snippets of each part at most")
    train_pairs: int = option(6400, "training pairs at most")
    eval_pairs: int = option(1600, "held-out pairs at most")
    seed: int = option(0, "seed of the sampling")


@dataclass(frozen=True)
class Source:
    """A parsed source file of the library."""

    name: str
    text: str
    tree: ast.Module

    @property
    def part(self) -> str | None:
        """The part of the library of the file's module, or of the module that it tests."""
        names = [name.removesuffix(".py") for name in self.name.split("/")]
        if names[0] == "test" and len(names) > 1:
            names = names[1:]
        stem = names[0].removeprefix("test_").lstrip("_")
        return PART_OF.get(stem) or PART_OF.get(stem.split("_")[0])

    @property
    def is_held_out(self) -> bool:
        """Whether the file is held out; depends on the text, so that copies stay together."""
        return hashlib.sha256(self.text.encode()).digest()[0] < HELD_OUT_SHARE * 256


def read_library() -> Iterator[Source]:
    """Yield the library's files that parse, including its tests, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if {"site-packages", "dist-packages", "data", "encodings"}.isdisjoint(name.parts):
            text = path.read_text(encoding="utf-8", errors="replace")
            try:
                with warnings.catch_warnings(action="ignore"):
                    yield Source(name.as_posix(), text, ast.parse(text))
            except (SyntaxError, ValueError):
                continue  # some test files are broken on purpose


def snippets(source: Source) -> list[str]:
    """Return the docstrings and function bodies of a file, each on one line."""
    texts, lines = [], source.text.splitlines()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            texts.append(ast.get_docstring(node) or "")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                texts.append(" ".join(lines[body[0].lineno - 1 : body[-1].end_lineno]))
    texts = [one_line(text)[:MAX_CHARACTERS] for text in texts]
    return sorted({text for text in texts if len(text) >= MIN_CHARACTERS})


def documented_functions(source: Source) -> list[tuple[str, str]]:
    """Return (signature, docstring) pairs of a file's functions, each docstring once."""
    pairs = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = one_line(ast.get_docstring(node) or "")
            if len(docstring) >= MIN_CHARACTERS // 2:
                signature = f"{node.name}({ast.unparse(node.args)})"
                pairs[docstring[:200]] = (signature[:120], docstring[:200])
    return [pairs[key] for key in sorted(pairs)]


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def package_examples(sources: Sequence[Source], per_part: int, seed: int) -> list[dict[str, str]]:
    """Return at most `per_part` labelled snippets of each part, shuffled."""
    by_part: dict[str, list[str]] = defaultdict(list)
    rng = random.Random(seed)
    for source in sources:
        if source.part is not None:
            found = snippets(source)
            by_part[source.part] += rng.sample(found, min(MAX_PER_FILE, len(found)))
    examples = [
        {"text": text, "label": part}
        for part, texts in sorted(by_part.items())
        for text in rng.sample(texts, min(per_part, len(texts)))
    ]
    rng.shuffle(examples)
    return examples


def pair_examples(sources: Sequence[Source], count: int, seed: int) -> list[dict[str, str]]:
    """Return at most `count` pairs of a signature and a docstring, about half of them matching."""
    examples, rng = [], random.Random(seed)
    for source in sources:
        pairs = documented_functions(source)
        if len(pairs) < 2:
            continue
        rng.shuffle(pairs)
        for index, (signature, docstring) in enumerate(pairs[:MAX_PER_FILE]):
            label = rng.choice(("match", "other"))
            if label == "other":
                docstring = pairs[index - rng.randrange(1, len(pairs))][1]
            examples.append({"text": signature, "text_pair": docstring, "label": label})
    rng.shuffle(examples)
    return examples[:count]


def write_tasks(options: TaskOptions) -> dict[str, int]:
    """Write both tasks; return file name → number of examples."""
    sources = list(read_library())
    held_out = [source for source in sources if source.is_held_out]
    train = [source for source in sources if not source.is_held_out]
    seed = options.seed
    files = {
        "packages/train.jsonl": package_examples(train, options.train_per_part, seed),
        "packages/eval.jsonl": package_examples(held_out, options.eval_per_part, seed),
        "docstrings/train.jsonl": pair_examples(train, options.train_pairs, seed),
        "docstrings/eval.jsonl": pair_examples(held_out, options.eval_pairs, seed),
    }
    with new_folder(options.dir) as writer:
        for name, examples in files.items():
            lines = (json.dumps(example) + "\n" for example in examples)
            writer.path(name).write_text("".join(lines), encoding="utf-8")
    return {name: len(examples) for name, examples in files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stdlib_tasks", description=__doc__)
    add_flags(parser, TaskOptions)
    for name, count in write_tasks(options_from(parser.parse_args(), TaskOptions)).items():
        print(f"{count:6} {name}")


if __name__ == "__main__":
    main()
