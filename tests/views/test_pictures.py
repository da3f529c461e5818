"""Media, maps and attention: what is drawn where, and nothing that is lost."""

import base64
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from regap_interp.views import (
    AttentionHeads,
    HeatMap,
    ImagePatches,
    Scale,
    VideoPatches,
    compared,
)
from regap_interp.views.drawing import pooled, ticks
from regap_interp.views.tile import spectrogram_picture
from tests.views.samples import INF, NAN, Page, column, heat, photo, spread


def test_many_patches_become_one_picture() -> None:
    small, large = (ImagePatches(photo(640, 480), spread(n, n)).html() for n in (28, 64))

    assert small.count("<i ") == 28 * 28
    assert "<i " not in large
    assert max(len(small), len(large)) < 300_000


def test_frames_keep_first_and_last_and_say_what_is_left_out() -> None:
    view = VideoPatches([photo()] * 40, spread(20, 2, 2))

    text = Page(view.html()).text
    assert "time 0" in text
    assert "time 19" in text
    assert "12 of 20 times not drawn" in text
    assert len(view.to_frame()) == 80


def test_frames_must_divide() -> None:
    with pytest.raises(ValueError, match="3 frames for 2 times"):
        VideoPatches([photo()] * 3, spread(2, 2, 2))


def test_a_small_map_is_a_table_with_its_numbers() -> None:
    page = Page(heat("the").html())

    cells = [a for tag, a in page.elements if tag == "td"]
    assert len(cells) == 15
    assert sum("dashed" in (a["style"] or "") for a in cells) == 2
    assert cells[0]["title"] == "layer 0, <s> (0): +0"
    assert cells[7]["title"] == "layer 1, the (2): not measured"
    assert [tag for tag, _ in page.elements].count("th") == 1 + 5 + 3


def test_a_large_map_is_a_picture_of_all_its_cells() -> None:
    view = HeatMap(spread(80, 640), range(80), ["<image>"] * 600 + [f"t{i}" for i in range(40)])

    assert [tag for tag, _ in Page(view.html()).elements] == ["figure", "img"]
    assert len(view.to_frame()) == 80 * 640
    assert view.caption == ""


def test_names_along_an_axis_keep_the_ends_and_the_runs() -> None:
    places, names = ticks(["<s>", *["<image>"] * 576, *(f"t{i}" for i in range(63))])

    assert names[:2] == ["<s>", "<image> \u00d7576"]
    assert names[-1] == "t62"
    assert places[0] == 0
    assert places[1] == (1 + 576) / 2
    assert places[-1] == 639
    assert ticks(range(200))[1][-1] == "199"
    assert len(ticks(range(200))[1]) < 50


def test_where_cells_share_a_dot_the_strongest_is_seen() -> None:
    values = torch.zeros(10, 1000)
    values[3, 501], values[8, 7], values[0, 0] = -2.0, NAN, INF

    few = pooled(values, (5, 100))

    assert few.shape == (5, 100)
    assert few[1, 50] == -2
    assert few[4, 0].isnan()
    assert few[0, 0] == INF
    assert int((few != 0).sum()) == 3
    assert pooled(values, (10, 1000)).nan_to_num(9).equal(values.nan_to_num(9))
    wide = HeatMap(values, range(10), range(1000))
    assert "strongest of 1 x 2 drawn" in wide.caption


def test_maps_refuse_names_that_do_not_fit(as_users_run_it: None) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\), with 2 names of rows and 2 of columns"):
        HeatMap(spread(2, 3), range(2), ["a", "b"])
    with pytest.raises(ValueError, match="nothing to draw"):
        HeatMap(spread(0, 3), [], ["a", "b", "c"])


def test_compared_views_share_their_scale() -> None:
    weak, strong = (
        HeatMap(column(1, 2)[None] * size, [0], ["a", "b"], title=name)
        for size, name in ((1, "weak"), (10, "strong"))
    )

    both = compared(weak, strong)

    assert [view.colours for view in both.views] == [Scale(20.0)] * 2
    assert both.to_frame()["view"].tolist() == ["weak", "weak", "strong", "strong"]
    assert weak.colours == Scale(2.0)


def test_only_like_is_compared() -> None:
    with pytest.raises(ValueError, match=r"\['a', 'b'\] cannot share a scale"):
        compared(heat("a"), heat("b"))
    with pytest.raises(ValueError, match="cannot share a scale"):
        compared()


def test_attention_of_many_heads_says_what_is_left_out() -> None:
    view = AttentionHeads(spread(40, 2, 2), ["a", "b"], [f"L0H{i}" for i in range(40)])

    assert view.caption == "8 of 40 heads not drawn"
    frame = view.to_frame()
    assert len(frame) == 160
    assert frame["head"].iloc[-1] == "L0H39"


def test_queries_are_the_last_of_the_keys() -> None:
    view = AttentionHeads(spread(1, 1, 3), ["a", "b", "c"], ["L0H0"])

    assert view.to_frame()["query"].tolist() == [2, 2, 2]


def test_attention_refuses_what_does_not_fit(as_users_run_it: None) -> None:
    with pytest.raises(ValueError, match="give a name for each head, a token for each key"):
        AttentionHeads(spread(1, 3, 2), ["a", "b"], ["L0H0"])


def test_values_may_be_of_low_precision_and_carry_gradients() -> None:
    values = spread(3, 4).bfloat16().requires_grad_()

    bundle = HeatMap(values, range(3), list("abcd"))._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "image/png"}
    assert ImagePatches(photo(), values)._png


def test_a_figure_hatches_what_is_not_finite() -> None:
    figure = ImagePatches(Image.new("RGB", (8, 8)), column(NAN, 1)[None]).plot()

    hatches = [patch.get_hatch() for patch in figure.axes[0].patches]
    assert hatches == ["//////"]


def test_odd_and_even_runs_have_their_names() -> None:
    for count in (5, 6, 7):
        names = [f"t{i}" for i in range(200)] + ["<i>"] * count + [f"u{i}" for i in range(200)]
        assert f"<i> \u00d7{count}" in ticks(names)[1]


def test_columns_are_not_said_to_be_positions() -> None:
    page = Page(HeatMap(spread(1, 2), [0], ["-3:a", "image[2\u00d72]"]).html())

    heads = [a.get("title") for tag, a in page.elements if tag == "th" and a.get("title")]
    assert heads == ["position -3:a (0)", "position image[2\u00d72] (1)"]


def test_a_drawing_says_labels_as_they_are() -> None:
    text = 'id="a" href="#b" url(#c)'

    view = HeatMap(spread(1, 2), [0], ["a", "b"], quantity=text)
    assert text in " ".join(ET.fromstring(view.svg()).itertext())


def test_low_bins_are_below_and_time_goes_to_the_right() -> None:
    sound = torch.zeros(8, 100)
    sound[0, :20] = 1.0

    dark = np.argwhere(np.asarray(spectrogram_picture(sound)) < 100)
    wide, high = spectrogram_picture(sound).size
    assert dark[:, 0].min() > 0.8 * high and dark[:, 1].max() < 0.25 * wide
    assert dark[:, 0].max() == high - 1 and dark[:, 1].min() == 0


def test_a_grid_that_is_a_picture_has_every_patch_at_its_place() -> None:
    values = torch.zeros(40, 30)
    values[0, 29], values[39, 0] = 1.0, -1.0
    view = ImagePatches(photo(300, 400), values)

    sources = [a["src"] or "" for tag, a in Page(view.html()).elements if tag == "img"]
    veil = Image.open(io.BytesIO(base64.b64decode(sources[-1].partition(",")[2]))).convert("RGBA")
    red, _, blue, opaque = (int(one) for one in np.asarray(veil)[2, -2])
    assert opaque > 150 and red > blue
    red, _, blue, opaque = (int(one) for one in np.asarray(veil)[-2, 2])
    assert opaque > 150 and blue > red
    assert np.asarray(veil)[2, 2][3] == np.asarray(veil)[-2, -2][3] == 0


def test_figures_have_every_value_at_its_place_with_its_sign() -> None:
    values = torch.tensor([[2.0, -1.0, 0.0], [0.5, 0.0, -2.0]])

    patches = ImagePatches(photo(), values).plot().axes[0].get_images()[1]
    assert patches.get_array().tolist() == values.sign().tolist()
    assert np.allclose(patches.get_alpha(), 0.72 * values.abs() / 2)
    (cells,) = HeatMap(values, [0, 1], list("abc")).plot().axes[0].get_images()
    assert np.allclose(cells.get_array(), values / 2)
    assert cells.get_extent() == [-0.5, 2.5, 1.5, -0.5]
    red, _, blue, _ = cells.cmap(cells.norm(1.0))
    assert red > blue
