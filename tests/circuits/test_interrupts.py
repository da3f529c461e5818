"""Passes that were finished before Ctrl-C are kept, and the same call goes on from them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analyses.circuits import Node, Runs, Scores, curves, minimality, record_runs, score_edges
from analyses.patching import Coordinate, LogitDifference
from analyses.resuming import Interrupted
from model_adapters import Adapter
from tests.circuits.conftest import runs_of
from tests.circuits.test_identities import some_direction

Call = Callable[..., Any]


@pytest.fixture(scope="session")
def adapter(small: tuple[Runs, Scores]) -> Adapter:
    return small[0].adapter


def call_of(kind: str, runs: Runs, scores: Scores) -> Call:
    def call(**more: Any) -> Any:
        if kind == "curves":
            circuits = [scores.greedy(n) for n in more.pop("sizes", (3, 8))]
            return curves(runs, circuits, **{"controls": 1, "resamples": 5, **more})
        circuit = scores.greedy(more.pop("sizes", 6))
        return minimality(runs, circuit, **{"by": "edges", "controls": 2, "resamples": 5, **more})

    return call


def press_after(done: int) -> Callable[[int, int], None]:
    def progress(now: int, total: int) -> None:
        if now >= done:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(("kind", "total"), [("curves", 8), ("minimality", 9)])
def test_it_goes_on(
    kind: str, total: int, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = call_of(kind, *small)
    whole = call().to_frame()
    with pytest.raises(Interrupted, match=f"after 4 of {total} ") as stopped:
        call(progress=press_after(4))
    passes, ablated = list[int](), Runs.ablated

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        return ablated(*args, **kwargs)

    monkeypatch.setattr(Runs, "ablated", counted)
    seen: list[tuple[int, int]] = []
    again = call(resume=stopped.value.partial, progress=lambda *now: seen.append(now))
    assert again.to_frame().equals(whole)
    # And two for the ends that effects are shares of.
    assert len(passes) == total - 4 + 2
    assert seen == [(done, total) for done in range(5, total + 1)]

    file = tmp_path / "kept"
    with pytest.raises(Interrupted):
        call(checkpoint=file, progress=press_after(2))
    assert call(checkpoint=file).to_frame().equals(whole)
    passes.clear()
    assert call(checkpoint=file).to_frame().equals(whole) and len(passes) == 2


def test_what_belongs_to_another_call_is_refused(adapter: Adapter, small: Any) -> None:
    runs, scores = small
    with pytest.raises(Interrupted) as stopped:
        call_of("curves", runs, scores)(progress=press_after(1))
    partial = stopped.value.partial
    one, other = runs_of(adapter)
    metric = LogitDifference(right=3, wrong=9)
    mean = {"metric": runs.reader.metric, "fill": "mean"}
    last = {"metric": runs.reader.metric, "positions": ["last"]}
    changed = [
        record_runs(adapter, one, other, metric=metric),
        record_runs(adapter, other, one, metric=runs.reader.metric),
        record_runs(adapter, one, other, **mean),
        record_runs(adapter, one, other, **last),
    ]
    calls = [call_of("curves", strange, scores) for strange in changed]
    calls += [call_of("minimality", runs, scores)]
    for call in calls:
        with pytest.raises(ValueError, match="another run"):
            call(resume=partial)
    same = call_of("curves", runs, scores)
    for more in ({"sizes": (3, 40)}, {"by": "edges"}, {"seed": 1}, {"controls": 2}):
        with pytest.raises(ValueError, match="another run"):
            same(resume=partial, **more)
    with pytest.raises(ValueError, match="no such folder"):
        same(checkpoint=Path("no") / "such" / "folder")


def test_directions_are_told_apart(adapter: Adapter) -> None:
    pair = runs_of(adapter)
    direction = some_direction(adapter, 1)
    turned = dataclasses.replace(direction, vector=direction.vector.flip(0))
    ours, theirs = (
        record_runs(adapter, *pair, metric=Coordinate(one)) for one in (direction, turned)
    )
    scores = score_edges(ours)
    with pytest.raises(Interrupted) as stopped:
        call_of("minimality", ours, scores)(progress=press_after(1))
    with pytest.raises(ValueError, match="another run"):
        call_of("minimality", theirs, scores)(resume=stopped.value.partial)
    strange = dataclasses.replace(
        direction, origin=dataclasses.replace(direction.origin, model="another")
    )
    with pytest.raises(ValueError, match="another model"):
        record_runs(adapter, *pair, metric=Coordinate(strange))


@pytest.mark.usefixtures("as_users_run_it")
def test_refused_before_anything_runs(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, scores = small
    monkeypatch.setattr(Runs, "ablated", lambda *_, **__: pytest.fail("it ran"))
    for kind in ("curves", "minimality"):
        call = call_of(kind, runs, scores)
        for more in ({"controls": -1}, {"resamples": 0}, {"confidence": 1.0}):
            with pytest.raises(ValueError, match="a confidence between 0 and 1"):
                call(**more)
    with pytest.raises(ValueError, match="there are no circuits"):
        curves(runs, [])
    strange = dataclasses.replace(scores.greedy(2), nodes={Node(9, "mlp"): 1.0})
    with pytest.raises(ValueError, match="has mlp 9"):
        curves(runs, [strange])


def test_a_metric_that_is_no_number_is_refused(adapter: Adapter) -> None:
    with pytest.raises(ValueError, match="not finite"):
        record_runs(adapter, *runs_of(adapter), metric=lambda logits: torch.log(-logits[:, 0] * 0))
