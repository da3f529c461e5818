"""The three floors: imports point downwards, and importing them stays light."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("model_adapters", "regap_interp", "analyses")  # bottom to top
HEAVY = ("transformer_lens", "circuitsvis", "gguf", "matplotlib", "pandas", "torchvision")


def imported_packages(source: str) -> Iterator[str]:
    """The top-level package of every absolute import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def modules_after(*imports: str) -> set[str]:
    """Names of the modules loaded once a fresh interpreter has imported `imports`."""
    program = f"import {', '.join(imports)}, sys, json; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "importing must print nothing"
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("level", range(len(FLOORS)), ids=FLOORS)
def test_no_floor_imports_one_above_it(level: int) -> None:
    above = set(FLOORS[level + 1 :])
    files = sorted((ROOT / FLOORS[level]).rglob("*.py"))
    assert files
    wrong = {
        str(file.relative_to(ROOT)): climbing
        for file in files
        if (climbing := above & set(imported_packages(file.read_text(encoding="utf-8"))))
    }
    assert not wrong


def test_an_upward_import_would_be_seen() -> None:
    source = "def f():\n    from analyses.cli import main\n    import regap_interp.capture as s\n"
    assert set(imported_packages(source)) == {"analyses", "regap_interp"}


def test_importing_the_floors_loads_nothing_heavy_and_no_model_family() -> None:
    # What the libraries below load by themselves is not ours to answer for.
    ours = modules_after("torch", "transformers", "nnsight", *FLOORS) - modules_after(
        "torch", "transformers", "nnsight"
    )
    parts = [name.split(".") for name in sorted(ours)]
    heavy = [".".join(p) for p in parts if p[0] in HEAVY]
    families = [
        ".".join(p)
        for p in parts
        if p[:2] == ["transformers", "models"] and len(p) > 2 and p[2] != "auto"
    ]
    assert heavy == []
    assert families == []
