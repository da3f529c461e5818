"""The README's programs run as they stand, and on other models that a user may bring."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import model_adapters
from model_adapters import Adapter
from regap_interp import MismatchError

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(params=["organism", "folder", "random"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """What `load` is given: the shipped model, a folder saved by a user, a model in memory."""
    if request.param == "random":
        return request.getfixturevalue("random_organism")
    if request.param == "organism":
        return "organism"
    adapter = model_adapters.load("organism")
    adapter.module.save_pretrained(tmp_path / "saved")
    adapter.processor.save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_program_runs(
    number: int,
    target: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter = target if isinstance(target, Adapter) else model_adapters.load(target)
    monkeypatch.setattr(model_adapters, "load", lambda name: adapter)
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[number], encoding="utf-8")  # traces need source in a file
    if "SHIPPED" in PROGRAMS[number] and target is adapter:
        # Bundles of one model are refused by another.
        with pytest.raises(MismatchError, match=r"fingerprint|weights"):
            runpy.run_path(str(script))
        return
    runpy.run_path(str(script))
    assert capsys.readouterr().out.count("\n") >= 2


def test_there_is_a_program() -> None:
    assert PROGRAMS
