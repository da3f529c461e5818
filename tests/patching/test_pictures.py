"""Pictures of results: every cell drawn, centred at 0, comparable, and said where they are from."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from analyses.patching import Agreement, Axis, PatchResult, compare
from regap_interp.views import Compared, HeatMap
from tests.patching.test_result import LAYERS, make

HEADS = Axis("head", ("0", "1"))
EVIL = "</script><img src=x onerror=alert(1)>\u202e"


def by_head(result: PatchResult) -> PatchResult:
    """The same with two heads, of which the second does nothing."""
    raw = torch.stack([result.raw, result.base[:, None, None].expand_as(result.raw)], dim=-1)
    return dataclasses.replace(result, raw=raw, axes=(*result.axes, HEADS))


def with_tokens(*tokens: str, n: int = 3) -> PatchResult:
    """Positions from the first on, a token each."""
    width = len(tokens)
    raw = torch.arange(n * 3 * width, dtype=torch.float64).reshape(n, 3, width)
    position = Axis("position", tuple(map(str, range(width))), tokens)
    return make(n=n, raw=raw, axes=(LAYERS, position))


def test_two_axes_are_a_map() -> None:
    result = make(agreement=Agreement(0.914, 0.25, 24))
    view = result.view("A map")
    assert isinstance(view, HeatMap)
    assert torch.equal(view.values, result.values)
    assert view.rows == ["0", "1", "2"] and view.columns == ["last", "2:4\u2192image"]
    assert view.colours.limit == float(result.values.abs().max())
    for said in ("tiny", "n = 5", "seed 3", "exact denoise of resid_pre", "logit difference 1 - 2"):
        assert said in view.caption
    assert (
        f"{result.corrupted.mean():.3g} corrupted, {result.clean.mean():.3g} clean" in view.caption
    )
    assert "Spearman 0.91 with 24 real patches (off by at most 0.25)" in view.caption


def test_a_notebook_gets_words_a_page_and_a_picture() -> None:
    bundle = make()._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "image/png"}
    assert "exact denoise of resid_pre" in bundle["text/html"]
    assert set(make()._repr_mimebundle_(include=["text/plain"])) == {"text/plain"}


def test_plots_are_figures() -> None:
    figures = pytest.importorskip("matplotlib.figure")
    figure = make().plot()
    assert isinstance(figure, figures.Figure)
    image = figure.axes[0].get_images()[0]
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1) and image.get_array().shape == (3, 2)
    mine = figures.Figure().subplots()
    assert make().at(position="last").plot(mine) is mine.figure
    assert len(mine.get_lines()[-1].get_xdata()) == 3


def test_one_axis_is_drawn_with_its_intervals() -> None:
    result = make(n=8).at(position="last")
    view: Any = result.view()
    (line,) = view.lines
    low, high = result.interval()
    assert torch.equal(line.band.value, result.values)
    assert torch.equal(line.band.low, low) and torch.equal(line.band.high, high)
    assert "position last" in view.caption
    assert view.to_frame()["layer"].tolist() == ["0", "1", "2"]
    (alone,) = make(n=1).at(position="last").view().lines
    assert alone.band.low.isnan().all() and alone.band.value.isfinite().all()


def test_points_of_positions_carry_intervals() -> None:
    pytest.importorskip("matplotlib")
    result = make(n=8).at(layer=1)
    axes = result.plot().axes[0]
    low, high = result.interval()
    (bars,) = axes.collections
    drawn = torch.tensor([[part[0][1], part[1][1]] for part in bars.get_segments()])
    torch.testing.assert_close(drawn.double(), torch.stack([low, high], dim=1))
    assert "layer 1" in result.view().caption


def test_a_single_cell_has_a_picture() -> None:
    one = make().at(position="last", layer=2)
    assert one.plot().axes
    assert one.p_values().shape == one.interval()[0].shape == ()
    assert "position last" in repr(one) and "layer 2" in repr(one)


def test_axes_of_one_place_do_not_count() -> None:
    heads = by_head(make()).at(position="last")
    single = dataclasses.replace(
        heads, raw=heads.raw[:, :, None], axes=(LAYERS, Axis("position", ("last",)), HEADS)
    )
    view: Any = single.view()
    assert torch.equal(view.values, heads.values) and view.column_axis == "head"
    assert "position last" in view.caption


def test_three_axes_are_panels_on_one_scale() -> None:
    result = by_head(make())
    view: Any = result.view()
    assert isinstance(view, Compared)
    # Positions and heads are equally few; the first of them makes the panels.
    assert [panel.title for panel in view.views] == ["position last", "position 2:4\u2192image"]
    assert torch.equal(view.views[1].values, result.values[:, 1])
    (scale,) = {panel.colours.limit for panel in view.views}
    assert scale == float(result.values.abs().max())
    assert "n = 5" in view.caption
    assert len(result.plot().axes) >= 2


def test_too_many_panels_are_refused_and_still_shown_in_words() -> None:
    raw = torch.zeros(2, 5, 5, 5, dtype=torch.float64)
    names = tuple(map(str, range(5)))
    axes = (Axis("layer", names), Axis("position", names), Axis("head", names))
    result = make(n=2, raw=raw, axes=axes)
    with pytest.raises(ValueError, match=r'choose a part of the result, such as .at\(layer="0"\)'):
        result.plot()
    bundle = result._repr_mimebundle_()
    assert list(bundle) == ["text/plain"] and ".at(" in bundle["text/plain"]
    assert isinstance(result.at(layer=0).view(), HeatMap)


def test_tokens_stand_beside_their_positions_and_duplicates_stay_apart() -> None:
    result = with_tokens("the", "<image>", "<image>", "<image>", "<image>", "the", "", "cat")
    view: Any = result.view()
    assert view.columns == ["0:the", *["<image>"] * 4, "5:the", "6", "7:cat"]
    assert view.values.shape == (3, 8)
    frame = result.to_frame()
    assert frame["token"].tolist()[:8] == list(result.axes[1].tokens)
    named = [one.get_text() for one in result.plot().axes[0].get_xticklabels()]
    assert named == ["0:the", "<image> \u00d74", "5:the", "6", "7:cat"]


def test_first_and_last_layer_are_always_named() -> None:
    names = tuple(map(str, range(100)))
    raw = torch.rand(2, 100, 2, dtype=torch.float64)
    result = make(n=2, raw=raw, axes=(Axis("layer", names), Axis("position", ("a", "b"))))
    shown = [one.get_text() for one in result.plot().axes[0].get_yticklabels()]
    assert shown[0] == "0" and shown[-1] == "99" and len(shown) < 60


def test_cells_that_were_not_run_are_marked() -> None:
    raw = make().raw.clone()
    raw[0, 1, 0] = torch.nan
    view = make(raw=raw).view()
    assert "1 of 6 not finite" in view.caption
    assert "\u2205" in view.html()


def test_hostile_tokens_and_names_are_text() -> None:
    result = dataclasses.replace(with_tokens(EVIL, "b"), model=EVIL, metric=EVIL)
    for html in (result._repr_mimebundle_()["text/html"], compare({EVIL: result}).html()):
        assert "<script" not in html and "</script" not in html and "<img src=x" not in html
        assert "\u202e" not in html
    result.at(position=0).plot()


def test_results_are_compared_on_one_scale() -> None:
    small, large = make(seed=1), make(seed=2)
    large = dataclasses.replace(large, raw=5 * large.raw)
    view: Any = compare({"image": small, "audio": large}, title="Two media")
    assert isinstance(view, Compared)
    assert [panel.title for panel in view.views] == ["image, n = 5", "audio, n = 5"]
    (scale,) = {panel.colours.limit for panel in view.views}
    assert scale == max(float(one.values.abs().max()) for one in (small, large))
    assert "exact denoise of resid_pre" in view.caption
    assert f"image {small.corrupted.mean():.3g} to {small.clean.mean():.3g}" in view.caption
    frame = view.to_frame()
    assert frame["value"].tolist() == [*small.values.flatten(), *large.values.flatten()]


def test_lines_are_compared_in_one_panel() -> None:
    pytest.importorskip("matplotlib")
    parts = {name: make(n=4, seed=i).at(position="last") for i, name in enumerate("abc")}
    view: Any = compare(parts)
    assert [line.name for line in view.lines] == ["a", "b", "c"]
    axes = view.plot().axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "a (n 4)",
        "b (n 4)",
        "c (n 4)",
    ]
    assert view.to_frame()["result"].tolist() == [name for name in "abc" for _ in range(3)]
    points = {name: make(n=4, seed=i).at(layer=0) for i, name in enumerate("ab")}
    first, second = (line.get_xdata() for line in compare(points).plot().axes[0].get_lines()[2:])
    assert (first[0], second[0]) == pytest.approx((-0.15, 0.15))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="results is empty"):
        compare({})
    with pytest.raises(ValueError, match="denoise and others noise"):
        compare({"one": make(), "other": make(mode="noise")})
    with pytest.raises(ValueError, match="layer; layer x position do not fit one picture"):
        compare({"one": make(), "other": make().at(position="last")})
    with pytest.raises(ValueError, match="do not fit one picture"):
        compare({"one": by_head(make())})


def test_files_of_views(tmp_path: Path) -> None:
    result = make()
    for name in ("map.html", "map.png", "map.svg"):
        assert result.save(tmp_path / name).stat().st_size > 1000
    with pytest.raises(ValueError, match=r"no view becomes a '.txt' file"):
        result.save(tmp_path / "map.txt")


def test_only_neighbours_are_drawn_as_one() -> None:
    apart = Axis("position", ("1", "5", "9", "13"), ("the",) * 4)
    assert apart.names() == ["1:the", "5:the", "9:the", "13:the"]
    assert Axis("position", ("-4", "-3", "-2", "-1"), ("the",) * 4).names() == ["the"] * 4


def test_lines_over_other_layers_are_drawn_in_the_order_of_layers() -> None:
    def over(*layers: str) -> PatchResult:
        axes = (Axis("layer", layers), Axis("position", ("last", "0")))
        return make(axes=axes).at(position="last")

    figure = compare({"late": over("4", "10-11", "12"), "early": over("2", "4", "5")}).plot()
    axes = figure.axes[0]
    shown = [one.get_text() for one in axes.get_xticklabels()]
    assert shown == ["2", "4", "5", "10-11", "12"]
    late, early = (line.get_xdata() for line in axes.get_lines()[2:])
    assert list(late) == [1, 3, 4] and list(early) == [0, 1, 2]


def test_a_token_is_named_only_where_all_results_have_it() -> None:
    def at(token: str) -> PatchResult:
        return make(axes=(LAYERS, Axis("position", ("3", "last"), (token, "x")))).at(layer=0)

    axes = compare({"text": at("cat"), "image": at("<image>")}).plot().axes[0]
    assert [one.get_text() for one in axes.get_xticklabels()] == ["3", "last:x"]


def test_many_lines_can_be_told_apart_and_are_all_in_the_caption() -> None:
    parts = {
        f"a result with the long name {i}": make(n=4, seed=i, metric=f"metric {i}").at(layer=0)
        for i in range(8)
    }
    view = compare(parts)
    for i, (name, one) in enumerate(parts.items()):
        ends = f"{name} {one.corrupted.mean():.3g} to {one.clean.mean():.3g}"
        assert ends in view.caption and f"{name}: metric {i}" in view.caption
    assert "95 % bootstrap intervals over items" in view.caption
    assert "interval" not in make(n=1).at(layer=0).view().caption
    lines = view.plot().axes[0].get_lines()[2:]
    assert len({(one.get_color(), one.get_marker()) for one in lines}) == 8
