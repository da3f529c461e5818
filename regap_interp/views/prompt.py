"""A row of a batch as views show it: the texts of its tokens, and its media as people see them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model_adapters import Adapter
from model_adapters.batch import Batch
from model_adapters.encode import Chat
from regap_interp.views.about import About
from regap_interp.views.drawing import furthest
from regap_interp.views.heatmap import HeatMap
from regap_interp.views.kept import Span, from_batch, from_chat
from regap_interp.views.tokens import TokenStrip, span_name


@dataclass(frozen=True, eq=False)
class Prompt:
    """A row of a batch, without its padding. Made by `Prompt.of`."""

    tokens: tuple[str, ...]
    """Text of every token, in order."""
    first: int
    """Position of the first of them in the batch."""
    spans: tuple[Span, ...]
    """Where media stand, in order; positions are those of the batch."""
    media: tuple[tuple[Span, Any], ...]
    """Of those the ones that can be shown, with a picture, a spectrogram or frames."""
    width: int
    """Positions of the batch."""
    model: str
    """For captions."""

    @classmethod
    def of(
        cls, adapter: Adapter, batch: Batch, row: int = 0, *, chat: Chat | None = None
    ) -> "Prompt":
        """A row of a batch.

        Args:
            adapter: Whose batch it is.
            batch: From `adapter.encode` or `adapter.describe`.
            row: Which request, negative from the last.
            chat: The request itself. With it, pictures are shown as they were given, stretched
                over the whole grid. Without it, media are shown as the model is given them, and as
                placeholders where its inputs cannot be turned back into pictures.

        Raises:
            IndexError: The batch has no such row.
            InputError: The chat does not hold the media of the row.
        """
        rows, width = batch.roles.shape
        if not -rows <= row < rows:
            raise IndexError(f"row {row} of a batch of {rows} rows; give 0 to {rows - 1}")
        row %= rows
        places = batch.prompt_mask[row].nonzero().flatten().tolist()
        first, stop = places[0], places[-1] + 1
        ids = batch.inputs["input_ids"][row, first:stop].tolist()
        media = (
            from_batch(adapter, batch, row)
            if chat is None
            else from_chat(adapter, batch, row, chat)
        )
        spans: list[Span] = [*batch.images[row], *batch.audios[row], *batch.videos[row]]
        return cls(
            tokens=tuple(_text(adapter.tokenizer, token) for token in ids),
            first=first,
            spans=tuple(sorted(spans, key=lambda span: span.start)),
            media=tuple(media),
            width=width,
            model=adapter.model_id,
        )

    def strip(
        self, values: Float[Tensor, "position"], *, about: About | None = None, **shown: Any
    ) -> TokenStrip:
        """The tokens in the colours of their values, media as pictures where they stand.

        Args:
            values: Of every position of the batch; those of padding are not looked at.
            about: For the caption, which names the model in any case.
            **shown: Further fields of `TokenStrip`: `quantity`, `title`, `scale`.

        Raises:
            ValueError: There is not one value for each position of the batch.
        """
        own = self._own(values)
        caption = self._about(about)
        return TokenStrip(self.tokens, own, self.media, self.first, about=caption, **shown)

    def heatmap(
        self,
        values: Float[Tensor, "row position"],
        rows: Sequence[str | int],
        *,
        about: About | None = None,
        **shown: Any,
    ) -> HeatMap:
        """A map of layers (or whatever the rows are) by tokens.

        A medium has one column, which shows the value furthest from 0 of its positions; the
        caption says so. For a column a position: `HeatMap(values, rows, prompt.tokens)`.

        Args:
            values: Of every position of the batch; those of padding are not looked at.
            rows: Names from top to bottom.
            about: For the caption, which names the model in any case.
            **shown: Further fields of `HeatMap`: `quantity`, `title`, `scale`, `row_axis`.

        Raises:
            ValueError: There is not one value for each position of the batch, or no name for a row.
        """
        own = self._own(values)
        starts = {span.start - self.first: span for span in self.spans}
        names, columns, at = list[str](), list[Tensor](), 0
        while at < len(self.tokens):
            span = starts.get(at)
            if span is None:
                names.append(self.tokens[at])
                columns.append(own[:, at])
                at += 1
            else:
                names.append(_column(span))
                inside = [place - self.first for place in span.positions]
                columns.append(furthest(own[:, inside], axis=1))
                at = span.stop - self.first
        caption = self._about(about)
        if self.spans:
            told = "of a medium, the value furthest from 0"
            note = " \u00b7 ".join(part for part in (caption.note, told) if part)
            caption = dataclasses.replace(caption, note=note)
        return HeatMap(torch.stack(columns, dim=1), rows, names, about=caption, **shown)

    def _own(self, values: Tensor) -> Tensor:
        if values.shape[-1] != self.width:
            raise ValueError(
                f"values for {values.shape[-1]} positions, and the batch has {self.width} (padding "
                "included); give one for each"
            )
        return values[..., self.first : self.first + len(self.tokens)]

    def _about(self, given: About | None) -> About:
        given = given or About()
        return dataclasses.replace(given, model=given.model or self.model)


def _column(span: Span) -> str:
    """A medium as the name of a column, in which spaces would be shown as signs."""
    return f"{span_name(span).replace(' of ', ' ', 1).replace(' ', '[', 1).replace(' ', '')}]"


def _text(tokenizer: Any, token: int) -> str:
    """A token as it was written, with its space."""
    if tokenizer is None:
        return f"#{token}"
    piece = str(tokenizer.convert_ids_to_tokens(token))
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if "\ufffd" in text:
        return piece  # a part of a character: others would look the same
    return f" {text}" if piece.startswith("\u2581") and not text.startswith(" ") else text
