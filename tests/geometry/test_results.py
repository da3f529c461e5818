"""Every result is a table, a drawing and a JSON file, and says where it comes from."""

import json
import math
import re
import sys
from pathlib import Path

import pytest

from analyses import geometry
from analyses.geometry import (
    RefusalTokens,
    Result,
    decompose,
    drift_arm,
    measure_states,
    plane,
    rectify,
    sweep,
)
from model_adapters import Adapter
from regap_interp.windows import QuantileBins
from tests.geometry.worlds import worded


@pytest.fixture(scope="module")
def results(random_organism: Adapter) -> list[Result]:
    requests = worded(random_organism)
    states = measure_states(random_organism, requests)
    found = plane(states, states.refusal(2), states.correction("image", 1), seed=3)
    followed = rectify(
        random_organism,
        requests,
        refusal=states.refusals(),
        drift=states.correction("image", 1),
        layer=1,
        tokens=RefusalTokens((5,), (7,)),
        resamples=5,
        seed=3,
    )
    return [
        decompose(states, resamples=5, permutations=5, splits=5, seed=3),
        found,
        found.windows("image", windows=QuantileBins(2), min_per_class=2, resamples=5),
        sweep(
            random_organism,
            requests,
            arms={"drift": drift_arm(states, "image", [1])},
            refusal=states.refusals(),
            strengths=(1.0,),
            resamples=5,
            seed=3,
        ),
        followed,
        followed.signals(),
    ]


def test_tables_are_tidy(results: list[Result]) -> None:
    pytest.importorskip("pandas")
    for result in results:
        frame = result.to_frame()
        assert len(frame) > 0
        assert list(frame.columns) == list(result.columns())


def test_files_say_where_numbers_come_from(
    results: list[Result], tmp_path: Path, random_organism: Adapter
) -> None:
    for result in results:
        path = result.save(tmp_path / f"{type(result).__name__}.json")
        found = json.loads(path.read_text(encoding="utf-8"))
        assert found["kind"] == type(result).__name__
        assert found["seed"] == 3
        assert found["source"]["model"] == random_organism.model_id
        assert found["source"]["fingerprint"] == random_organism.fingerprint
        assert found["source"]["site"] == "resid_post"
        assert found["source"]["at"] == "last"
        for name, column in result.columns().items():
            for written, value in zip(found["columns"][name], column, strict=True):
                if isinstance(value, float) and not math.isfinite(value):
                    assert written is None
                else:
                    assert written == value
        with pytest.raises(ValueError, match=r"end it in \.json"):
            result.save(tmp_path / "result.csv")


def test_drawings_go_where_they_are_told(results: list[Result]) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    for result in results:
        ax = figure.subplots()
        assert result.plot(ax) is ax
        own = result.plot()
        assert own.figure is not figure
        assert f"n {result.n}" in own.get_title()  # type: ignore[attr-defined]
        assert "seed 3" in own.get_title()
        own.figure.canvas.draw()
        figure.clear()


def test_importing_loads_neither_matplotlib_nor_pandas() -> None:
    files = sorted(Path(geometry.__file__).parent.glob("*.py"))
    assert len(files) > 10
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            assert not re.match(r"(import|from) (matplotlib|pandas|scipy)", line), file


def test_a_missing_library_is_named(results: list[Result], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pandas", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install 'regap-interp\\[views\\]'"):
        results[0].to_frame()
    with pytest.raises(ImportError, match="pip install 'regap-interp\\[views\\]'"):
        results[0].plot()
