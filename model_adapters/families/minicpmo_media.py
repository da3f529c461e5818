"""Images and audio as MiniCPM-o takes them: in lists with one entry a request.

Images and audio stand at the same token: where they are is told by bounds, half-open and counted in
the padded row, and never by the ids.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.functional import pad

from model_adapters.errors import InputError
from model_adapters.families.medium import Config, Inputs, Item, Join, Medium

Rows = list[Any]
"""One entry for each request."""


@dataclass(frozen=True, kw_only=True)
class Bounded(Medium):
    """Media in lists with one entry a request, and bounds that tell where they stand."""

    bounds: str
    """Input name of the bounds, for each row `[run, 2]`."""
    per_row: tuple[str, ...]
    """Inputs with one entry a request, the bounds among them."""
    unread: str
    """Another one, which processors return and nothing reads."""

    def joins(self) -> dict[str, Join]:
        """Lists one after another."""
        return dict.fromkeys((self.values, *self.per_row, self.unread), Join(rows=True))

    def joined(self, name: str, encodings: Sequence[Inputs], starts: Sequence[int]) -> Any:
        """Lists one after another, bounds moved to where each encoding begins."""
        rows: Rows = []
        for encoding, start in zip(encodings, starts, strict=True):
            of_encoding = _rows(encoding, name)
            if not of_encoding:
                of_encoding = [_NONE[name] for _ in encoding["input_ids"]]
            if name in (*_BOUNDS, "spk_bounds"):
                of_encoding = [torch.as_tensor(bounds) + start for bounds in of_encoding]
            rows += of_encoding
        return rows

    def complete(self, inputs: Inputs) -> None:
        """All of one row for each request."""
        count = len(inputs["input_ids"])
        for name in self.per_row:
            given = inputs.get(name)
            fits = isinstance(given, list | tuple) and len(given) == count
            if not fits:
                size = f"{len(given)} entries" if isinstance(given, list | tuple) else type(given)
                raise InputError(
                    f"{self.values} needs {name}, a list with one entry for each of the {count} "
                    f"requests; got {size}"
                )

    def placeholder(self, config: Config) -> int:
        """What `prepare` read off the tokenizer; else a token like any other."""
        return _known(config) or 0

    def placeholders(self, inputs: Inputs, config: Config) -> Bool[Tensor, "batch position"]:
        """The positions inside the bounds; those of the token where nothing has bounds."""
        token, ids = _known(config), inputs["input_ids"]
        bounded = _within(inputs, self.bounds)
        if token is not None and not any(_within(inputs, name).any() for name in _BOUNDS):
            return ids == token
        return bounded

    def placed(self, item: Inputs, config: Config, start: int) -> dict[str, Any]:
        """The bounds of an example of one row."""
        ends = start + torch.tensor([i.positions for i in self.items(item, config)]).cumsum(0)
        return {
            self.bounds: [torch.stack([torch.cat([torch.tensor([start]), ends[:-1]]), ends], 1)]
        }

    def check(self, inputs: Inputs, config: Config) -> None:
        """Bounds in order and inside their rows, as many positions as vectors."""
        ids, width = inputs["input_ids"], inputs["input_ids"].shape[1]
        expected = self.counts(inputs, config)
        for row, runs in enumerate(inputs[self.bounds]):
            ends = [place for run in _runs(runs) for place in run]
            if ends != sorted(ends) or (ends and not 0 <= ends[0] <= ends[-1] <= width):
                raise InputError(
                    f"{self.bounds} of row {row} are {_runs(runs)}; they must be [start, stop) in "
                    f"order, within its {width} positions"
                )
            sizes = [stop - start for start, stop in _runs(runs)]
            if sum(sizes) != sum(expected[row]):
                raise InputError(
                    f"row {row}: the {self.kind} tower will emit {sum(expected[row])} tokens for "
                    f"{len(expected[row])} item(s), but {self.bounds} holds {sum(sizes)} positions"
                )
        inside, known = _within(inputs, self.bounds), _known(config)
        tokens = {*ids[inside].tolist(), *(() if known is None else (known,))}
        stray = torch.isin(ids, torch.tensor(sorted(tokens), device=ids.device))
        for name in _BOUNDS:
            stray &= ~_within(inputs, name)
        if inputs.get("attention_mask") is not None:
            stray &= inputs["attention_mask"].bool()
        if len(tokens) > 1 or stray.any():
            raise InputError(
                f"{self.bounds} must enclose all placeholders and nothing else: inside stand the "
                f"tokens {sorted(tokens)}, and {int(stray.sum())} of them outside"
            )

    @abstractmethod
    def counts(self, inputs: Inputs, config: Config) -> list[list[int]]:
        """How many vectors each piece of each row gives."""


@dataclass(frozen=True, kw_only=True)
class Slices(Bounded):
    """Images, cut by the processor into slices: `values` is `[3, patch, patch * patches]` each."""

    sizes: str
    """Input name of the patches of a slice, rows and columns."""

    def given(self, inputs: Inputs) -> bool:
        """Whether any row has a slice."""
        return any(len(row) for row in _rows(inputs, self.values))

    def counts(self, inputs: Inputs, config: Config) -> list[list[int]]:
        """The resampler's queries for each slice."""
        return [[config.query_num] * len(row) for row in inputs[self.values]]

    def check(self, inputs: Inputs, config: Config) -> None:
        """A size and a run of positions for each slice."""
        super().check(inputs, config)
        patch = config.vision_config.patch_size
        for row, slices in enumerate(inputs[self.values]):
            sizes, runs = inputs[self.sizes][row], _runs(inputs[self.bounds][row])
            if not len(slices) == len(sizes) == len(runs):
                raise InputError(
                    f"row {row} has {len(slices)} image slices in {self.values}, {len(sizes)} in "
                    f"{self.sizes} and {len(runs)} in {self.bounds}"
                )
            if any(stop - start != config.query_num for start, stop in runs):
                raise InputError(f"{self.bounds} of row {row}: a slice takes {config.query_num}")
            for one, (high, wide) in zip(slices, torch.as_tensor(sizes).tolist(), strict=True):
                if tuple(one.shape) != (3, patch, patch * high * wide):
                    raise InputError(
                        f"row {row}: a slice of {high} by {wide} patches has shape "
                        f"{(3, patch, patch * high * wide)}, not {tuple(one.shape)}"
                    )
                if not one.isfinite().all():
                    raise InputError(f"{self.values} holds NaN or infinite values")

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each slice; queries stand for no place in the image."""
        return [Item(count) for row in self.counts(inputs, config) for count in row]

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Any]:
        """One slice of 3 by 2 patches, or two of 2 by 3."""
        patch, shape = config.vision_config.patch_size, ((3, 2), (2, 3))[size]
        slices = [torch.randn(3, patch, patch * 6, generator=generator) for _ in range(1 + size)]
        return {self.values: [slices], self.sizes: [torch.tensor([shape] * (1 + size))]}


@dataclass(frozen=True, kw_only=True)
class Clips(Bounded):
    """Audio: `values` is `[clip, bin, frame]` for the whole batch."""

    lengths: str
    """Input name of the frames of each row's clips."""

    def joined(self, name: str, encodings: Sequence[Inputs], starts: Sequence[int]) -> Any:
        """Clips one after another, frames filled up."""
        if name != self.values:
            return super().joined(name, encodings, starts)
        clips = [e[name] for e in encodings if self.given(e)]
        frames = max((one.shape[-1] for one in clips), default=0)
        filled = [pad(one, (0, frames - one.shape[-1])) for one in clips]
        return torch.cat(filled) if filled else []

    def given(self, inputs: Inputs) -> bool:
        """Whether there is a clip."""
        features = inputs.get(self.values)
        return features is not None and len(features) > 0

    def counts(self, inputs: Inputs, config: Config) -> list[list[int]]:
        """Two frames of features are one of the encoder, and some of those one vector."""
        step = config.audio_pool_step
        return [[(int(n) + 1) // 2 // step for n in row] for row in inputs[self.lengths]]

    def check(self, inputs: Inputs, config: Config) -> None:
        """As many clips as lengths, none longer than the features; apart from images."""
        features = inputs[self.values]
        lengths = [int(n) for row in inputs[self.lengths] for n in row]
        shape = (len(lengths), config.audio_config.num_mel_bins)
        if not isinstance(features, Tensor) or tuple(features.shape[:2]) != shape:
            given = tuple(features.shape) if isinstance(features, Tensor) else type(features)
            raise InputError(
                f"{self.values} must be [clip, bin, frame] with the {shape[0]} clips of "
                f"{self.lengths} and {shape[1]} bins; got {given}"
            )
        if max(lengths) > features.shape[-1]:
            raise InputError(
                f"{self.lengths} has a clip of {max(lengths)} frames, {self.values} holds "
                f"{features.shape[-1]}"
            )
        super().check(inputs, config)
        if (_within(inputs, "image_bound") & _within(inputs, self.bounds)).any():
            raise InputError(f"{self.bounds} and image_bound overlap")

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each clip, or for each run where clips and runs are not the same.

        In the second case (audio read second by second) frames are those of the row's clips put
        together.
        """
        items = []
        for row, counts in enumerate(self.counts(inputs, config)):
            lengths = [int(n) for n in inputs[self.lengths][row]]
            bounds = inputs.get(self.bounds)
            runs = counts if bounds is None else [b - a for a, b in _runs(bounds[row])]
            if runs == counts:
                items += [Item(c, frames=(0, n)) for c, n in zip(counts, lengths, strict=True)]
                continue
            hop, total, heard = 2 * config.audio_pool_step, sum(lengths), 0
            for run in runs:
                end = min((heard + run) * hop, total)
                items.append(Item(run, frames=(min(heard * hop, total), end)))
                heard += run
        return items

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Any]:
        """A clip of 41 frames, or of 64."""
        frames = (41, 64)[size]
        values = torch.randn(1, config.audio_config.num_mel_bins, frames, generator=generator)
        return {self.values: values, self.lengths: [torch.tensor([frames])]}

    def vectors(self, outputs: Sequence[Tensor], module: nn.Module, inputs: Inputs) -> Tensor:
        """The pooled states, which come as `[clip, d_model, position]`."""
        return torch.cat([one.transpose(1, 2).flatten(0, 1) for one in outputs])


def _known(config: Config) -> int | None:
    found: int | None = (getattr(config, "regap_interp", None) or {}).get("placeholder")
    return found


def _within(inputs: Inputs, name: str) -> Bool[Tensor, "batch position"]:
    """The positions inside some bounds."""
    places = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for row, runs in zip(places, _rows(inputs, name), strict=False):
        for start, stop in _runs(runs):
            row[start:stop] = True
    return places


def _rows(inputs: Inputs, name: str) -> Rows:
    given = inputs.get(name)
    return [] if given is None else list(given)


def _runs(bounds: Any) -> list[list[int]]:
    runs: list[list[int]] = torch.as_tensor(bounds).reshape(-1, 2).long().tolist()
    return runs


_BOUNDS = ("image_bound", "audio_bounds")
_NO_BOUNDS = torch.zeros(0, 2, dtype=torch.long)
_NONE: dict[str, Any] = {
    "pixel_values": [],
    "tgt_sizes": [],
    "image_bound": _NO_BOUNDS,
    "audio_feature_lens": _NO_BOUNDS[:, 0],
    "audio_bounds": _NO_BOUNDS,
    "spk_bounds": _NO_BOUNDS,
    "image_sizes": [],
}
