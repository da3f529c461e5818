"""What a batch holds of its media, turned back into pictures and spectrograms."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from model_adapters import Adapter
from model_adapters.batch import AudioSpan, Batch, ImageSpan, VideoSpan
from model_adapters.encode import Chat, normalise
from model_adapters.errors import InputError
from model_adapters.families.forms_audio import Frames
from model_adapters.families.forms_grid import Grid
from model_adapters.families.medium import Medium

Span = ImageSpan | AudioSpan | VideoSpan
_FFT, _HOP = 400, 160  # of Whisper's features at 16 kHz: windows of 25 ms, every 10 ms
_QUIETEST = 8.0
"""Powers of ten below the loudest that a spectrogram shows."""


def from_batch(adapter: Adapter, batch: Batch, row: int) -> list[tuple[Span, Any]]:
    """The media of a row as the model is given them, in order of the prompt.

    Turned back are patches as Qwen's processors cut them, pictures that are one item each, and
    feature frames of sounds. Media in other forms are left out.
    """
    found: list[tuple[Span, Any]] = []
    for medium in adapter.family.media:
        if not medium.given(batch.inputs):
            continue
        rows: Sequence[Sequence[Span]] = getattr(batch, f"{medium.kind}s")
        before = sum(len(spans) for spans in rows[:row])
        for number, span in enumerate(rows[row], start=before):
            content = _content(adapter, medium, batch.inputs, number, sum(map(len, rows)))
            if content is not None:
                found.append((span, content))
    return sorted(found, key=lambda one: one[0].start)


def from_chat(adapter: Adapter, batch: Batch, row: int, chat: Chat) -> list[tuple[Span, Any]]:
    """The media of a row as its request has them, in order of the prompt.

    Raises:
        InputError: The chat does not hold as many media as the row.
    """
    (messages,) = normalise([chat], adapter.media)
    used = [one for one in adapter.family.media if one.given(batch.inputs)]
    even = any(isinstance(one, Frames) for one in used)
    parts = [part for message in messages for part in message["content"]]
    found: list[tuple[Span, Any]] = []
    for kind in ("image", "audio", "video"):
        spans: Sequence[Span] = getattr(batch, f"{kind}s")[row]
        given = [part[kind] for part in parts if part["type"] == kind]
        if len(given) != len(spans):
            raise InputError(
                f"the chat holds {len(given)} {kind}(s), row {row} of the batch {len(spans)}; give "
                "the request that the row was made from, or none where the model cuts pictures "
                "into tiles"
            )
        found += [(span, _shown(one, span, even)) for span, one in zip(spans, given, strict=True)]
    return sorted(found, key=lambda one: one[0].start)


def _shown(given: Any, span: Span, even: bool) -> Any:
    """A medium of a request as views take it.

    Args:
        given: from the request.
        span: where it stands.
        even: whether frames of sounds are 10 ms, as those of the spectrogram are; otherwise it
            gets as many as the model has for it.
    """
    if isinstance(span, AudioSpan):
        sound = spectrogram(given)
        if even or span.frames is None or span.frames[0]:
            return sound
        return torch.nn.functional.interpolate(sound[None], span.frames[1])[0]
    if not isinstance(span, VideoSpan):
        return given
    if isinstance(given, str):
        raise InputError("the chat holds a video as a file, which is not decoded here; give frames")
    times = len(given) if span.grid is None else span.grid[0]
    return [given[time * len(given) // times] for time in range(times)]


def spectrogram(sound: Any) -> Float[Tensor, "bin frame"]:
    """Logarithm of the power of a 16 kHz waveform in bins of 40 Hz, every 10 ms."""
    samples = torch.as_tensor(sound, dtype=torch.float32)
    window = torch.hann_window(_FFT)
    if len(samples) < _FFT:
        samples = torch.nn.functional.pad(samples, (0, _FFT - len(samples)))
    power = torch.stft(samples, _FFT, _HOP, window=window, return_complex=True).abs() ** 2
    loudness = power.clamp(min=1e-10).log10()
    return loudness.clamp(min=float(loudness.max()) - _QUIETEST)


def _content(
    adapter: Adapter, medium: Medium, inputs: Mapping[str, Any], number: int, items: int
) -> Any:
    """A picture, frames or a spectrogram; None where the form is not one of those known."""
    values = inputs[medium.values]
    if type(medium) is Grid and medium.channels is None:
        grids = inputs[medium.grid]
        patches = values.split(grids.prod(dim=1).tolist())[number].float().cpu()
        frames = _unfolded(patches, grids[number].tolist(), medium.merge(adapter.module.config))
        if frames is None:
            return None
        pictures = [_picture(frame, adapter.processor) for frame in frames]
        return pictures if medium.kind == "video" else pictures[0]
    if isinstance(medium, Frames):
        heard = values[number].float().cpu()
        return heard.T if medium.frames_first else heard
    one_each = isinstance(values, Tensor) and values.ndim == 4 and len(values) == items
    if medium.kind == "image" and one_each and values.shape[1] == 3:
        high, wide = _size(inputs, number, values)
        return _picture(values[number, :, :high, :wide].float().cpu(), adapter.processor)
    return None


def _unfolded(
    patches: Float[Tensor, "patch values"], grid: list[int], merge: int
) -> Float[Tensor, "frame 3 row column"] | None:
    """Frames of patches; None where patches are no squares of three colours."""
    for frames in (1, 2):
        side = math.isqrt(patches.shape[1] // (3 * frames))
        if 3 * frames * side**2 == patches.shape[1]:
            time, rows, columns = grid
            return rearrange(
                patches,
                "(t h w a b) (c f p q) -> (t f) c (h a p) (w b q)",
                t=time,
                h=rows // merge,
                w=columns // merge,
                a=merge,
                b=merge,
                c=3,
                f=frames,
                p=side,
                q=side,
            )
    return None


def _size(inputs: Mapping[str, Any], number: int, values: Tensor) -> tuple[int, int]:
    """Rows and columns of pixels that are not padding."""
    sizes = inputs.get("image_sizes")
    if sizes is None or len(sizes) != len(values):
        return values.shape[2], values.shape[3]
    high, wide = (int(one) for one in sizes[number])
    return high, wide


def _picture(pixels: Float[Tensor, "3 row column"], processor: Any) -> Image.Image:
    """A picture in its own colours; stretched from dark to light where those are not known."""
    normal = getattr(processor, "image_processor", None)
    mean, spread = (getattr(normal, f"image_{name}", None) for name in ("mean", "std"))
    if not getattr(normal, "do_normalize", True):
        mean, spread = (0.0,) * 3, (1.0,) * 3
    if mean is None or spread is None:
        low, high = pixels.min(), pixels.max()
        shown = (pixels - low) / (high - low).clamp(min=1e-6)
    else:
        column = (-1, 1, 1)
        shown = pixels * torch.tensor(spread).view(column) + torch.tensor(mean).view(column)
    levels = (shown * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())
