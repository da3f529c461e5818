"""The tokens of a prompt, each with its value; media as pictures where they stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from model_adapters.batch import AudioSpan, ImageSpan, VideoSpan
from regap_interp.views import chips, flow
from regap_interp.views.chips import Chip
from regap_interp.views.coloured import Coloured
from regap_interp.views.markup import Markup, element, joined
from regap_interp.views.media import AudioFrames, ImagePatches, VideoPatches
from regap_interp.views.numbers import extent

if TYPE_CHECKING:
    from regap_interp.views.interactive import Interactive

Span = ImageSpan | AudioSpan | VideoSpan
_MOST = 1500
"""Chips; of longer prompts the middle is left out."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenStrip(Coloured):
    """Tokens in order, each in the colour of its value.

    Equal tokens stay apart; runs of four and more, such as placeholders, are one chip with their
    number and a bar of their values. What cannot be seen in a token is shown by signs.

    >>> import torch
    >>> from regap_interp.views import TokenStrip
    >>> strip = TokenStrip(["<s>", "open", "it"], torch.tensor([0.0, -1.5, 2.0]))
    >>> strip.to_frame()["value"].tolist()
    [0.0, -1.5, 2.0]
    >>> "&lt;s&gt;" in strip._repr_mimebundle_()["text/html"]
    True
    """

    tokens: Sequence[str]
    """One text for each position."""
    values: Float[Tensor, "token"]
    """NaN where a position could not be measured."""
    media: Sequence[tuple[Span, Any]] = ()
    """Spans of the batch with what they hold: a PIL picture for an image, a spectrogram
    `[bin, frame]` for an audio, a list of PIL pictures for a video. They are shown in place of
    their placeholders where the span has a grid."""
    first: int = 0
    """Position of the first token in the batch, where rows have padding before it."""

    def __post_init__(self) -> None:
        """Refuse values and spans that do not belong to the tokens."""
        super().__post_init__()
        if len(self.tokens) != len(self.values):
            raise ValueError(f"{len(self.tokens)} tokens with {len(self.values)} values; give each")
        for span, _ in self.media:
            if span.start < self.first or span.stop - self.first > len(self.tokens):
                raise ValueError(
                    f"{type(span).__name__} {span.start}-{span.stop} lies outside the tokens, "
                    f"which are positions {self.first}-{self.first + len(self.tokens)}; give "
                    "`first`, the position of the first of them"
                )

    def interactive(self) -> "Interactive":
        """The same with scripts, through circuitsvis: see `Interactive`."""
        from regap_interp.views.interactive import coloured_tokens

        return coloured_tokens(self.values, self.tokens)

    def _numbers(self) -> Tensor:
        return self.values

    def _summary(self) -> str:
        return f"{len(self.tokens)} tokens, {self.quantity}{extent(self.values)}"

    def _columns(self) -> dict[str, Sequence[Any]]:
        return {
            "position": [self.first + index for index in range(len(self.tokens))],
            "token": list(self.tokens),
            "value": self.values.tolist(),
        }

    def _notes(self) -> str:
        hidden = len(self._chips()) - _MOST
        left = f"{hidden} chips in the middle not drawn" if hidden > 0 else ""
        between = sum(len(span.gaps) for span, _ in self.media if not isinstance(span, AudioSpan))
        gaps = f"{between} separators within media not drawn" if between else ""
        return " \u00b7 ".join(part for part in (super()._notes(), left, gaps) if part)

    def _body(self) -> Markup:
        scale, found = self.colours, list[Markup]()
        for chip in _bounded(self._chips()):
            medium = None if chip is None else self._medium(chip)
            if chip is None:
                found.append(element("span", " \u2026 "))
            elif medium is None:
                found.append(chips.as_html(chip, self.values, scale, self.first))
                if "\n" in self.tokens[chip.start]:
                    found.append(element("br"))
            else:
                found.append(self._tile(chip, medium))
        return joined(element("div", *found, style="line-height:2"), self._legend())

    def _tile(self, chip: Chip, medium: ImagePatches | AudioFrames | VideoPatches) -> Markup:
        style = "display:inline-block;vertical-align:top;margin:2px 8px 2px 0;line-height:1.4"
        name = element("div", chip.where(self.first), style="font-size:11px")
        return element("div", name, medium.tiles(), style=style)

    def _medium(self, chip: Chip) -> ImagePatches | AudioFrames | VideoPatches | None:
        if chip.medium is None:
            return None
        span, content = self.media[chip.medium]
        values = self.values[[position - self.first for position in span.positions]]
        scale = self.colours
        if isinstance(span, AudioSpan):
            heard = content if span.frames is None else content[:, slice(*span.frames)]
            return AudioFrames(heard, values, scale=scale)
        if span.grid is None:
            return None
        patches = values.reshape(span.grid)[..., : span.grid[2] - span.newlines]
        if isinstance(span, VideoSpan):
            return VideoPatches(content, patches, scale=scale)
        return ImagePatches(content, patches.flatten(0, 1), scale=scale)

    def _chips(self) -> list[Chip]:
        spans = [(s.start - self.first, s.stop - self.first, span_name(s)) for s, _ in self.media]
        return chips.chips(self.tokens, spans)

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        return 1, 1, (flow.WIDE + 1.2, flow.LINE * flow.height(self._placed()) + 0.4)

    def _placed(self) -> list[flow.Placed]:
        """Everything in the figure."""
        found = []
        for chip in _bounded(self._chips()):
            medium = None if chip is None else self._medium(chip)
            tiles = () if medium is None else tuple(medium.figure_tiles())
            ends = chip is not None and "\n" in self.tokens[chip.start]
            found.append((chip, tiles, ends))
        return flow.placed(found)

    def _draw(self, axes: list[list[Any]]) -> None:
        ax = axes[0][0]
        flow.draw(ax, self._placed(), self.values, self.colours, self.first)
        self._bar(ax)


def _bounded(found: list[Chip]) -> list[Chip | None]:
    """The chips, None for the middle of too many."""
    half = _MOST // 2
    return [*found] if len(found) <= _MOST else [*found[:half], None, *found[-half:]]


def span_name(span: Span) -> str:
    """A medium in few words, such as "image 24 x 24"."""
    kind = type(span).__name__.removesuffix("Span").lower()
    if isinstance(span, AudioSpan) or span.grid is None:
        return f"{kind} of {len(span)}"
    times, rows, columns = span.grid
    grid = f"{rows} \u00d7 {columns - span.newlines}"
    return f"{kind} {grid}" if times == 1 else f"{kind} {times} \u00d7 {grid}"
