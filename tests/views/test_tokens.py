"""The token strip: positions kept apart, runs collapsed, media where they stand."""

import pytest
import torch
from PIL import Image

from model_adapters.batch import ImageSpan
from regap_interp.views import TokenStrip
from tests.views.samples import EVIL, INF, NAN, Page, column, hostile_tokens, photo, spread, strip


def titles(view: TokenStrip) -> list[str]:
    """Hover texts of its chips."""
    found = Page(view.html()).elements
    return [a["title"] or "" for tag, a in found if tag == "span" and a.get("title")]


def test_equal_tokens_stay_apart_with_their_own_values() -> None:
    view = TokenStrip([" the", " the", " the"], column(1, -1, 0.5), first=7)

    assert titles(view) == [
        "position 7: \u2423the +1",
        "position 8: \u2423the \u22121",
        "position 9: \u2423the +0.5",
    ]


def test_long_runs_are_one_chip_with_a_bar() -> None:
    values = torch.zeros(900)
    values[450] = -3.0
    view = TokenStrip(["a", *["<image>"] * 898, "b"], values)
    html = view.html()

    assert "&lt;image&gt; \u00d7898" in html
    assert "positions 1 to 898: \u22123 to +0" in html
    assert html.count("width:4px") == 24
    assert html.count(f"height:12px;background:{view.colours.fill(-3)}") == 1  # the one that counts
    assert len(html) < 6_000


def test_what_is_not_finite_is_marked_and_counted() -> None:
    view = TokenStrip(["a", "b", "c"], column(NAN, INF, 1))

    assert view.html().count("1px dashed") == 3  # two tokens and the legend
    assert "position 0: a not measured" in titles(view)
    assert "position 1: b +\u221e" in titles(view)
    assert view.caption == "2 of 3 not finite"


def test_hostile_tokens_are_text() -> None:
    view = hostile_tokens("the")
    text = Page(view.html()).text

    assert EVIL[0] in text
    assert EVIL[1][:10] in text
    assert "\u27e8U+202E\u27e9" in text
    assert "(10\u202f000 characters)" in text
    assert len(view.html()) < 8_000
    assert len(view.to_frame()) == len(EVIL) + 1


def test_media_stand_in_place_of_their_placeholders() -> None:
    text = Page(strip().html()).text

    assert "image 2 \u00d7 3, positions 1 to 6" in text
    assert "audio of 5, positions 9 to 13" in text
    assert "video 2 \u00d7 2 \u00d7 2, positions 14 to 21" in text
    assert "<image>" not in text
    hovers = [a["title"] for tag, a in Page(strip().html()).elements if tag == "i"]
    assert len(hovers) == 6 + 5 + 8
    assert hovers[1] == "row 0, column 1: not measured"


def test_separators_and_row_ends_are_no_patches() -> None:
    # Two rows of three patches, a learned end of each row, and a separator between the rows.
    span = ImageSpan(1, 10, (1, 2, 4), gaps=(5,), newlines=True)
    values = torch.arange(11).double()
    view = TokenStrip(["<s>", *["<image>"] * 9, "a"], values, [(span, photo())])

    hovers = [a["title"] for tag, a in Page(view.html()).elements if tag == "i"]
    assert [(hover or "").split(": ")[1] for hover in hovers] == [
        "+1",
        "+2",
        "+3",
        "+6",
        "+7",
        "+8",
    ]
    assert "1 separators within media not drawn" in view.caption


def test_media_without_a_grid_are_runs() -> None:
    view = TokenStrip(["<image>"] * 9, spread(9), [(ImageSpan(0, 9, None), photo())])

    assert "image of 9" in view.html()
    assert "<img" not in view.html()


def test_an_image_of_576_patches_is_small() -> None:
    span = ImageSpan(1, 577, (1, 24, 24))
    picture = Image.effect_noise((1200, 900), 200)  # the hardest to compress
    view = TokenStrip(["<s>", *["<image>"] * 576, "a"], spread(578), [(span, picture)])

    assert len(view.html()) < 300_000
    assert view.html().count("<i ") == 576
    assert sum(len(part) for part in view._repr_mimebundle_().values()) < 900_000


def test_a_figure_shows_media_as_pictures() -> None:
    (ax, _) = strip().plot().axes

    pictures = [len(inner.get_images()) for inner in ax.child_axes]
    assert pictures == [1, 2, 2, 2, 2]  # the image alone, and image, sound and two times with grids
    said = {text.get_text() for text in ax.texts}
    assert {"image 2 \u00d7 3, positions 1 to 6", "audio of 5, positions 9 to 13", "time 1"} <= said
    hatched = [p.get_hatch() for inner in ax.child_axes for p in inner.patches]
    assert hatched == ["//////"]


def test_what_stands_in_a_figure_does_not_overlap() -> None:
    media = [(ImageSpan(i * 7, i * 7 + 6, (1, 2, 3)), photo(30 + 50 * i, 60)) for i in range(5)]
    view = TokenStrip(
        ["<image>"] * 6 + [*(["a"] + ["<image>"] * 6) * 4, "b\n", "c"], spread(36), media
    )

    boxes = [(one.column, one.line, one.wide, one.high) for one in view._placed()]
    cells = [(c, r) for x, y, w, h in boxes for c in range(x, x + w) for r in range(y, y + h)]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) <= 96
    assert boxes[-1][0] == 0  # after the line break


def test_long_prompts_lose_their_middle_and_say_so() -> None:
    view = TokenStrip([f"t{i}" for i in range(4_000)], spread(4_000))

    assert "2500 chips in the middle not drawn" in view.caption
    assert titles(view)[0].startswith("position 0: t0 ")
    assert titles(view)[-1].startswith("position 3999: t3999 ")
    assert len(view.to_frame()) == 4_000


def test_what_does_not_fit_is_refused(as_users_run_it: None) -> None:
    with pytest.raises(ValueError, match="2 tokens with 3 values"):
        TokenStrip(["a", "b"], spread(3))
    with pytest.raises(ValueError, match="ImageSpan 1-7 lies outside the tokens"):
        TokenStrip(["a", "b"], spread(2), [(ImageSpan(1, 7, (1, 2, 3)), photo())])
