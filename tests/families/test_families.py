"""Every family passes the same checks, on a tiny model; `regap families` prints their figures."""

import json
from pathlib import Path

import pytest

from analyses.cli import main
from analyses.families.table import as_markdown
from analyses.families.verify import Verified, counted, verify
from model_adapters.tiny import builders

_ROWS: dict[str, Verified] = {}
PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def row_of(name: str) -> Verified:
    if name not in _ROWS:
        _ROWS[name] = verify(name, builders()[name])
    return _ROWS[name]


@pytest.mark.parametrize("name", builders())
def test_a_family_passes_every_check(name: str) -> None:
    row = row_of(name)
    assert not row.failures
    # A check that never ran would pass too.
    assert "self-check" in row.checks
    assert len(row.checks) >= 8


def test_every_stated_place_was_looked_at() -> None:
    rows = [row_of(name) for name in builders()]

    def without(check: str, *kinds: str) -> set[str]:
        return {
            row.model_type
            for row in rows
            if set(kinds) & set(row.media) and check not in row.checks
        }

    # Queries, or crops and their overview in one item, have no place of their own.
    latent = {"minicpmo", "idefics2", "aria", "phi4_multimodal"}
    assert without("spans' grids are where the pixels are", "image", "video") == latent
    assert without("audio frames are those heard", "audio") == set()


def test_enough_families_are_verified_with_media() -> None:
    assert len(counted(row_of(name) for name in builders())) >= 25


def test_the_page_of_the_docs_is_what_the_checks_say() -> None:
    rows = [row_of(name) for name in builders()]

    def without_figures(page: str) -> list[list[str]]:
        return [
            [cell for cell in line.split(" | ") if "e-" not in cell and cell != "0e+00"]
            for line in page.splitlines()
        ]

    written = PAGE.read_text(encoding="utf-8")
    assert without_figures(written) == without_figures(as_markdown(rows)), (
        "run `regap families --write docs/families.md`"
    )


def test_the_command_prints_the_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "qwen2_vl", "gemma2"]) == 0
    table = capsys.readouterr().out
    assert "Qwen2VLForConditionalGeneration" in table
    assert "1 families verified" in table
    assert main(["families", "qwen2_vl", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["model_type"] == "qwen2_vl"
    assert row["media"] == ["image", "video"]
    assert row["verified"] is True
    assert row["checks"]["zero strength changes nothing"] == 0.0


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "nonsense"]) == 2
    assert "no tiny model 'nonsense'" in capsys.readouterr().err
