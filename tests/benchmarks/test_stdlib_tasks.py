"""The tasks made from the standard library: correct labels, texts and pairs."""

import ast

from benchmarks.stdlib_tasks import (
    PARTS,
    Source,
    documented_functions,
    package_examples,
    pair_examples,
    snippets,
)

CODE = '''
def first(a, b=1):
    """Add the second number to the first one, and say what came of it in the end,
    whatever the numbers were."""
    return a + b + sum(number for number in range(1000) if number % 7 == 0 and number % 5 == 0)


def second(name):
    """Greet somebody by name, in the language of the house, without any further ado,
    and return nothing."""
    print("hello", name)
'''


def source(name: str, text: str = CODE) -> Source:
    return Source(name, text, ast.parse(text))


def test_a_file_belongs_to_the_part_of_its_module_and_its_tests() -> None:
    parts = {
        "asyncio/events.py": "asyncio",
        "test/test_asyncio/test_events.py": "asyncio",
        "test/test_concurrent_futures/test_wait.py": "concurrency",
        "_pydecimal.py": "numbers",
        "json/decoder.py": "text",
        "antigravity.py": None,
    }
    assert {name: source(name).part for name in parts} == parts
    assert len(PARTS) == 20


def test_snippets_are_docstrings_and_bodies_on_one_line() -> None:
    found = snippets(source("json/decoder.py"))
    assert len(found) == 3
    assert sum("range(1000)" in text and "def" not in text for text in found) == 1
    examples = package_examples([source("json/a.py"), source("ast.py")], 2, seed=0)
    assert sorted(example["label"] for example in examples) == ["syntax", "syntax", "text", "text"]
    assert examples == package_examples([source("json/a.py"), source("ast.py")], 2, seed=0)


def test_pairs_match_or_come_from_another_function_of_the_file() -> None:
    own = dict(documented_functions(source("ast.py")))
    assert own.keys() == {"first(a, b=1)", "second(name)"}
    examples = [e for seed in range(8) for e in pair_examples([source("ast.py")], 10, seed)]
    assert {example["label"] for example in examples} == {"match", "other"}
    for example in examples:
        is_own = example["text_pair"] == own[example["text"]]
        assert is_own == (example["label"] == "match")
