"""The guides' programs run in order, and print what stands below them."""

import contextlib
import io
import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

WITHOUT_PROGRAMS = (
    "index.md",
    "conclusions.md",
    "organism.md",  # the model card
    "families.md",  # a generated table, held true by the test of families
)
PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
GUIDES = [page for page in PAGES if page.name not in WITHOUT_PROGRAMS]
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", flags=re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_programs_print_what_the_guide_shows(guide: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(guide.read_text(encoding="utf-8"))
    assert blocks
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, (program, shown) in enumerate(blocks):
        script = tmp_path / f"block_{number}.py"
        script.write_text(program, encoding="utf-8")  # traces need source in a file
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(program, str(script), "exec"), names)
        for got, want in zip_longest(printed.getvalue().splitlines(), shown.splitlines()):
            assert got is not None and want is not None, f"{program}\nprints {got}, not {want}"
            assert NUMBER.sub("#", got) == NUMBER.sub("#", want), program
            found, told = map(float, NUMBER.findall(got)), map(float, NUMBER.findall(want))
            assert list(found) == pytest.approx(list(told), rel=0.02, abs=0.02), program


def test_pages_without_programs_are_those_and_have_none() -> None:
    exempt = [page for page in PAGES if page.name in WITHOUT_PROGRAMS]
    assert len(exempt) == len(WITHOUT_PROGRAMS)
    assert not [page.name for page in exempt if "```python" in page.read_text(encoding="utf-8")]


def test_there_is_a_guide_to_graphs() -> None:
    assert "graphs.md" in [guide.name for guide in GUIDES]


@pytest.mark.parametrize(
    "title", ["Steer", "Ablate", "Patch from another run", "Logit lens", "ReGap"]
)
def test_common_interventions_take_under_ten_lines(title: str) -> None:
    guide = next(guide for guide in GUIDES if guide.name == "graphs.md")
    section = guide.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    programs = [program for program, _ in BLOCK.findall(section)]
    assert programs
    assert all(len(program.splitlines()) < 10 for program in programs)


def test_a_new_family_takes_under_twenty_lines() -> None:
    guide = next(guide for guide in GUIDES if guide.name == "bring_your_own_model.md")
    programs = [program for program, _ in BLOCK.findall(guide.read_text(encoding="utf-8"))]
    (entry,) = [program for program in programs if "family = Family(" in program]
    body = entry.partition("family = Family(")[2].partition("adapter = ")[0].splitlines()
    assert len(body) < 20
