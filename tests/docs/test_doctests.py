"""Examples in docstrings give what they say, each by itself as a reader would copy it."""

import ast
import doctest
import io
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples_in(path: Path, source: str) -> list[doctest.DocTest]:
    """From the source: wrapped functions and lazily imported modules are found like all others."""
    parser, found = doctest.DocTestParser(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            if ">>>" in text:
                name = f"{path.as_posix()}:{getattr(node, 'name', 'module')}"
                found.append(parser.get_doctest(text, {"__name__": "__main__"}, name, None, 0))
    return found


def failures(example: doctest.DocTest) -> str:
    """What went wrong, in words; empty if nothing did."""
    told = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(example, out=told.write)
    return told.getvalue()


EXAMPLES = [
    example
    for floor in ("model_adapters", "regap_interp", "analyses")
    for path in sorted((ROOT / floor).rglob("*.py"))
    for example in examples_in(path.relative_to(ROOT), path.read_text(encoding="utf-8"))
]


def test_core_functions_have_examples() -> None:
    assert len(EXAMPLES) >= 20


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example_gives_what_it_says(example: doctest.DocTest) -> None:
    told = failures(example)
    assert not told, told


def test_a_wrong_example_fails() -> None:
    (right, wrong) = (
        examples_in(Path("here.py"), f'def f():\n    """\n    >>> 1 + 1\n    {said}\n    """\n')[0]
        for said in (2, 3)
    )
    assert not failures(right)
    assert "Expected" in failures(wrong)
