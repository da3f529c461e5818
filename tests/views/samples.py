"""Views with ordinary and with hostile content; `python -m tests.views.samples` renews golden."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import torch
from PIL import Image

from model_adapters.batch import AudioSpan, ImageSpan, VideoSpan
from regap_interp.views import (
    About,
    AttentionHeads,
    AudioFrames,
    Band,
    HeatMap,
    ImagePatches,
    LayerTrace,
    PlanePoints,
    PlaneView,
    RocCurve,
    RocCurves,
    RocView,
    TokenStrip,
    TrajectoriesView,
    VideoPatches,
    View,
    WindowCurve,
    WindowsView,
    compared,
)

GOLDEN = Path(__file__).parent / "golden"
RAN = "document.documentElement.dataset.ran=1"
"""What hostile text does if it ever runs."""
EVIL = (
    "<s>",
    f"</script><script>{RAN}</script>",
    f'<img/src="x"/onerror="{RAN}">',
    f"'\"><svg/onload={RAN}>",
    "\u202eright to left\u2066",
    "nul\x00esc\x1b[31m",
    "x" * 10_000,
    "\ud800",
    "$x^2$ \\frac{1}{0}",
    "&lt;b&gt;",
    "",
    "驅動",
    "\u0301mark",
    "\u3164",
)
NAN, INF = float("nan"), float("inf")


def column(*values: float) -> torch.Tensor:
    """Numbers in float64."""
    return torch.tensor(values, dtype=torch.float64)


def spread(*shape: int) -> torch.Tensor:
    """Numbers from -1 to 1 in no simple order, the same every time."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).mul(2.4).sin().view(shape)


def band(*values: float) -> Band:
    """A line with an interval of half a unit to each side."""
    middle = column(*values)
    return Band(middle, middle - 0.5, middle + 0.5)


def photo(width: int = 64, height: int = 48) -> Image.Image:
    """A picture with some colour everywhere."""
    ramp = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (ramp, ramp.transpose(Image.Transpose.ROTATE_180), ramp))


def strip(text: str = "the") -> TokenStrip:
    """A prompt with every medium, equal tokens, and values that are missing."""
    tokens = ["<s>", *["<image>"] * 6, text, text, *["<audio>"] * 5, *["<video>"] * 8, *["."] * 9]
    values = spread(len(tokens))
    values[[2, 8]] = NAN
    media = (
        (ImageSpan(1, 7, (1, 2, 3)), photo()),
        (AudioSpan(9, 14, (0, 20)), spread(8, 30)),
        (VideoSpan(14, 22, (2, 2, 2)), [photo()] * 4),
    )
    return TokenStrip(tokens, values, media, quantity=text, title=text, about=about(text))


def about(text: str) -> About:
    """A caption that says `text`."""
    return About(text, 12, 3, text)


def heat(text: str) -> HeatMap:
    """Three layers, five positions, one not measured, one infinite."""
    values = spread(3, 5)
    values[1, 2], values[2, 4] = NAN, INF
    names = ["<s>", text, text, " a", "b"]
    return HeatMap(values, range(3), names, quantity=text, title=text, about=about(text))


def hostile_tokens(text: str) -> TokenStrip:
    """All hostile tokens, and `text`."""
    return TokenStrip([*EVIL, text], spread(len(EVIL) + 1))


def attention(text: str) -> AttentionHeads:
    """Two heads over four tokens."""
    return AttentionHeads(
        spread(2, 4, 4).tril(), ["<s>", text, " a", text], ["L0H0", text], title=text
    )


def plane(text: str) -> PlaneView:
    """Two panels of four items, one of them not measured."""
    labels = torch.tensor([True, False, True, False])
    media = torch.tensor([True, True, False, False])
    points = PlanePoints(text, column(1, 0, 0.5, NAN), column(0, 1, 0.5, 0.2), labels, media)
    return PlaneView([points, points], about=about(text))


def windows(text: str) -> WindowsView:
    """Two arms of one modality; a window without a measurement."""
    return WindowsView(
        [
            WindowCurve(text, arm, column(0, 1, 2), band(2, NAN, 1), band(0, 0.5, 1), 40)
            for arm in ("undefended", text)
        ]
    )


def by_layer(text: str) -> TrajectoriesView:
    """Harmful and benign over three layers."""
    traces = [
        LayerTrace(text, True, "corrected", (4, 5, 6), band(0, 1, 2), 20),
        LayerTrace("benign", False, text, (4, 5, 6), band(0, 0.1, 0.1), 20),
    ]
    return TrajectoriesView(traces, text, ((4, "corrected"), (6, "signal read")))


def roc(text: str) -> RocView:
    """One chosen signal, and one without an interval."""
    curves = (
        RocCurve(text, column(0, 0.1, 1), column(0, 0.9, 1), 0.9, 0.85, 0.95, 0.3, (0.1, 0.9)),
        RocCurve("absolute", column(0, 1), column(0, 1), 0.5, NAN, NAN),
    )
    return RocView([RocCurves(text, curves, 60)])


VIEWS: dict[str, Callable[[str], View]] = {
    "strip": strip,
    "tokens": hostile_tokens,
    "heat": heat,
    "compared": lambda text: compared(heat(text), heat(text), title=text),
    "image": lambda text: ImagePatches(photo(), spread(2, 3), quantity=text),
    "audio": lambda text: AudioFrames(spread(8, 30), spread(5), title=text),
    "video": lambda text: VideoPatches([photo()] * 4, spread(2, 2, 3), about=about(text)),
    "attention": attention,
    "plane": plane,
    "windows": windows,
    "layers": by_layer,
    "roc": roc,
}
"""Every kind of view, saying a text wherever it can say one."""
GOLDEN_VIEWS = ("strip", "tokens", "heat", "image")


class Page(HTMLParser):
    """What a browser takes from a page: elements with their attributes, and text."""

    def __init__(self, text: str, *, strict: bool = True) -> None:
        """Read a page.

        Args:
            text: HTML.
            strict: Whether every element must be closed in its place, as ours are.
        """
        super().__init__()
        self.strict = strict
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("br", "img", "meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert not self.strict or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def without_pictures(html: str) -> str:
    """HTML without the bytes of its pictures, which depend on the versions of libraries."""
    return re.sub(r"(data:image/\w+;base64,)[\w+/=]+", r"\1", html).replace("><", ">\n<") + "\n"


def renew() -> None:
    """Write the golden files anew; look at what changed before committing it."""
    for name in GOLDEN_VIEWS:
        html = without_pictures(VIEWS[name]("the").html())
        (GOLDEN / f"{name}.html").write_text(html, encoding="utf-8")


if __name__ == "__main__":
    renew()
