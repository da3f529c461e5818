"""Every result is a table, a drawing and a JSON file, and says where it comes from."""

import csv
import dataclasses
import json
import math
import re
import sys
import xml.dom.minidom
from pathlib import Path

import pytest

from analyses import geometry
from analyses.geometry import (
    RefusalTokens,
    Result,
    Sweep,
    decompose,
    drift_arm,
    measure_states,
    plane,
    rectify,
    sweep,
)
from model_adapters import Adapter
from regap_interp.windows import QuantileBins
from tests.geometry.worlds import plant, worded


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


def test_results_show_themselves(results: list[Result], random_organism: Adapter) -> None:
    pytest.importorskip("matplotlib")
    for result in results:
        bundle = result._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/html", "image/png"}
        assert bundle["image/png"].startswith(b"\x89PNG")
        assert "<script" not in bundle["text/html"]
        for said in (f"n = {result.n}", "seed 3", random_organism.model_id):  # type: ignore[attr-defined]
            assert said in bundle["text/plain"]


def test_drawings_go_where_they_are_told(results: list[Result], tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    for result in results:
        rows, columns, _ = result.view()._shape()
        assert result.plot(figure.subplots(rows, columns)) is figure
        figure.clear()
        assert result.plot() is not figure
        for suffix in (".png", ".svg", ".html", ".csv"):
            path = result.save(tmp_path / f"{type(result).__name__}{suffix}")
            assert path.stat().st_size > 100
        written = (tmp_path / f"{type(result).__name__}.csv").read_text(encoding="utf-8")
        assert written.splitlines()[0] == ",".join(result.columns())
        with pytest.raises(ValueError, match=r"'\.txt'"):
            result.save(tmp_path / "result.txt")


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


HOSTILE = "=1+<script>alert(1)</script>$\\frac{x$\x00\u202e]]>\"'\n&,\ud800" + "x" * 300


def test_hostile_names_are_text_everywhere(results: list[Result], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    states = plant(6)
    requests = states.requests
    hostile = dataclasses.replace(
        requests,
        ids=tuple(f"{HOSTILE}{one}" for one in requests.ids),
        twin=tuple(None if one is None else f"{HOSTILE}{one}" for one in requests.twin),
        modality=tuple("text" if one == "text" else HOSTILE for one in requests.modality),
    )
    source = dataclasses.replace(states.source, model=HOSTILE)
    states = dataclasses.replace(states, requests=hostile, source=source)
    swept = next(one for one in results if isinstance(one, Sweep))
    cells = (swept.bare, *(dataclasses.replace(one, arm=HOSTILE) for one in swept.cells[1:]))
    swept = dataclasses.replace(swept, cells=cells, source=source, modalities=(HOSTILE,))
    taken_apart = decompose(states, pairs="all", resamples=3, permutations=3, splits=3)
    seen = plane(states, states.refusal(0), states.correction(HOSTILE, 0, pairs="all"))
    for number, one in enumerate((taken_apart, seen, swept, swept.heat())):
        shown = one._repr_mimebundle_()
        written = one.save(tmp_path / f"{number}.svg").read_text(encoding="utf-8")
        xml.dom.minidom.parseString(written)
        for text in (shown["text/html"], shown["text/plain"], written):
            assert not re.search("\x00|\u202e|\ud800", text)
        assert "<script" not in shown["text/html"] + written
        file = one.save(tmp_path / f"{number}.csv")
        with file.open(encoding="utf-8", newline="") as opened:
            rows = list(csv.reader(opened))
        assert {len(row) for row in rows} == {len(rows[0])}
        assert any("<script>" in word for row in rows for word in row)
