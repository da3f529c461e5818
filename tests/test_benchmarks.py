"""The benchmark of interventions runs on a tiny model; figures are not judged here."""

import json
from typing import Any

import pytest

import regap_interp as ri
from benchmarks.interventions import bars, missed, report, table
from benchmarks.measure import Measured, check, measure, runs_in_all
from benchmarks.setting import FULL, TINY, Setting, build, regap
from benchmarks.timing import Progress, Ratio, alternate


@pytest.fixture(scope="module")
def setting() -> Setting:
    return build(TINY)


@pytest.fixture(scope="module")
def measured(setting: Setting) -> Measured:
    return measure(setting, 1, Progress(runs_in_all(1)))


def test_every_row_holds_an_image(setting: Setting) -> None:
    assert setting.batch.modalities == ("image",) * TINY.batch
    assert setting.batch.roles.shape == (TINY.batch, TINY.tokens)


@pytest.mark.parametrize("signal", ["absolute", "depth_gain", "paired_gain"])
def test_the_threshold_triggers_the_wanted_rows(setting: Setting, signal: str) -> None:
    for triggered in (0, 1, TINY.batch):
        run = regap(setting, signal, triggered).run(setting.adapter, setting.batch, logits=True)
        (strength,) = run.strengths.values()
        assert (strength == -1.0).sum() == triggered
        assert (strength == -0.3).sum() == TINY.batch - triggered


def test_a_graph_that_does_something_else_is_found_out(setting: Setting) -> None:
    graph = regap(setting, "absolute", 1)
    with pytest.raises(RuntimeError, match="rows triggered: 1, not 2"):
        check(setting, graph, 2, 2)
    weak = ri.add("resid_post", TINY.edited, setting.drift, strength=-0.3, phase="both")
    with pytest.raises(RuntimeError, match="hooks on layers in decoding: 1, not 0"):
        check(setting, ri.Graph(weak), 0, 0)


def test_report_has_what_the_table_needs(measured: Measured) -> None:
    found = json.loads(json.dumps(report(measured, TINY)))
    assert set(found["ratios"]) == {
        "prefill_none",
        "prefill_none_depth_gain",
        "prefill_paired",
        "prefill_all",
        "decode_step",
        "generate_quarter",
    }
    for ratio in found["ratios"].values():
        assert ratio["value"] > 0
        assert all(ours > 0 and theirs > 0 for ours, theirs in ratio["runs"])
    assert found["D"] > 0 and found["P"] > 0
    assert len(found["ratios"]["decode_step"]["runs"]) == TINY.timed_steps
    lines = table(found).splitlines()
    assert sum(line.startswith(("prefill_", "decode_", "generate_")) for line in lines) == 7


def test_bars_are_those_of_the_setting() -> None:
    found = bars(FULL, prefill=10.0, step=0.1)
    assert found["prefill_paired"] == pytest.approx(1.3125)
    assert found["prefill_all"] == pytest.approx(1 + 1.25 * 16 / 24)
    share = 10.0 / (10.0 + 6.4)
    assert found["generate_quarter"] == pytest.approx(min(1.1, 1 + 0.3125 * 16 / 24 * share))


def test_a_missed_bar_is_named() -> None:
    ratios: Any = {"slow": {"value": 1.2, "bar": 1.1}, "fast": {"value": 1.0, "bar": 1.1}}
    ratios["unknown"] = {"value": float("nan"), "bar": 1.0}
    assert missed({"ratios": ratios}) == ["slow", "unknown"]


def test_the_value_is_the_median_over_pairs() -> None:
    # One slow spell that hits both sides of a pair says nothing about the ratio.
    ratio = Ratio(ours=(1.1, 2.2, 11.0), theirs=(1.0, 2.0, 10.0))
    assert ratio.value == pytest.approx(1.1)
    assert ratio.pairs()[1] == [2.2, 2.0]


def test_sides_take_turns_and_the_first_run_is_dropped() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = alternate({"a": lambda: side("a"), "b": lambda: side("b")}, 2, Progress(6))
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert found == {"a": (3.0, 6.0), "b": (4.0, 5.0)}
