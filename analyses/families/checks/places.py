"""Whether spans say where in the picture, and when in the sound, their positions are.

Random weights keep places: what an encoder makes of a patch still depends most on that patch. So
the gradient of the vector at a position with respect to the pixels tells where it belongs.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.families.checks.measure import CheckError
from analyses.families.checks.pixels import Where, units
from analyses.families.checks.plain import keep
from analyses.families.prompts import Prompts, medium_of
from model_adapters import Adapter, Batch
from model_adapters.batch import AudioSpan, ImageSpan, VideoSpan
from model_adapters.families.forms_audio import Frames, Projected
from model_adapters.families.forms_phi import Heard
from model_adapters.families.medium import Medium

HEARS_PADDING = "encoder hears padding"
"""Quirk of families whose encoder takes what a sound was filled up with for silence."""

_DRAWS = 2
_REACH = 3
"""Frames beyond the last one heard that convolutions reach into."""
_RISES = 0.8
"""Least correlation of a position's number with where in the sound it listens."""


def grids_are_where_the_pixels_are(adapter: Adapter, prompts: Prompts) -> float | None:
    """The part of positions that depend most on pixels outside of their cell of the span's grid.

    None where no item has a grid, and for forms of which `units` says nothing.
    """
    wrong = total = 0
    for kind, batch in prompts.sizes():
        if kind == "audio" or not any(s.grid for row in getattr(batch, f"{kind}s") for s in row):
            continue
        medium = medium_of(adapter, kind)
        pixels = units(medium, batch.inputs, adapter.module.config)
        if pixels is None:
            continue
        for number, (span, depends) in enumerate(_dependence(adapter, medium, batch)):
            if not isinstance(span, AudioSpan) and span.grid is not None:
                of_units = torch.stack([pixels.fold(one) for one in depends])
                wrong += _misplaced(of_units, pixels.where, number, span)
                total += len(span)
    return wrong / total if total else None


def _misplaced(
    depends: Float[Tensor, "position unit"], where: Where, item: int, span: ImageSpan | VideoSpan
) -> int:
    """How many positions of a span depend most on another cell of its grid than their own."""
    times, rows, columns = span.grid or (1, 1, 1)
    patches = columns - 1 if span.newlines else columns
    own = torch.arange(len(span)).reshape(times, rows, columns)
    of_patches = own[..., :patches].flatten()
    ends = own[..., patches:].flatten()
    if bool(depends[ends].any()):
        raise CheckError(f"a newline of item {item} depends on pixels")
    if not len(of_patches):
        return len(depends) - len(ends)
    mine = where[:, 0] == item
    if not bool(mine.any()):
        raise CheckError(f"there is no item {item} among the pixels")
    relative = depends[of_patches][:, mine]
    relative = (relative / relative.mean(dim=0).clamp(min=1e-30)) ** 2
    shape = torch.tensor([times, rows, patches])
    time, row, column = (where[mine, 1:] * shape).long().unbind(dim=1)
    cell = (time * rows + row) * patches + column
    sums = torch.zeros(len(relative), len(of_patches)).index_add(1, cell, relative)
    sizes = torch.zeros(len(of_patches)).index_add(0, cell, torch.ones(len(cell)))
    strongest = (sums / sizes.clamp(min=1)).argmax(dim=1)
    return int((strongest != torch.arange(len(of_patches))).sum())


def frames_are_those_heard(adapter: Adapter, prompts: Prompts) -> float | None:
    """No difference if `frames` are those heard, and positions stand in their order.

    None where no audio has frames.

    Raises:
        CheckError: saying what is wrong with which audio.
    """
    if "audio" not in prompts.kinds:
        return None
    batch, medium = dict(prompts.sizes())["audio"], medium_of(adapter, "audio")
    axis = 1 if _frames_first(medium) else 2
    mask = _mask(medium, batch, batch.inputs[medium.values].shape[axis])
    tried = False
    for number, (span, depends) in enumerate(_dependence(adapter, medium, batch)):
        if not isinstance(span, AudioSpan) or span.frames is None:
            continue
        tried = True
        wrong = _misheard(
            depends[:, number].sum(dim=3 - axis),
            span.frames,
            None if mask is None else mask[number],
            silent=HEARS_PADDING in adapter.family.quirks,
        )
        if wrong is not None:
            raise CheckError(f"audio {number} with frames {span.frames}: {wrong}")
    return 0.0 if tried else None


def _misheard(
    depends: Float[Tensor, "position frame"],
    frames: tuple[int, int],
    mask: Tensor | None,
    *,
    silent: bool,
) -> str | None:
    """What is wrong with the frames of a span, None if nothing is."""
    first, end = frames
    heard = depends.sum(dim=0).nonzero().flatten().tolist()
    if not heard or not 0 <= first < end <= depends.shape[1]:
        return f"there are {depends.shape[1]}, of which {len(heard)} are heard"
    if mask is not None and mask.nonzero().flatten().tolist() != list(range(first, end)):
        return f"the mask has {int(mask.sum())}"
    if heard[0] != first or heard[-1] < end - 1:
        return f"frames {heard[0]} to {heard[-1]} are heard"
    if heard[-1] >= end + (0 if mask is None else _REACH) and not silent:
        return f"frame {heard[-1]} is heard too"
    hearing = depends.sum(dim=1) > 0
    relative = depends[hearing][:, first:end]
    relative = (relative / relative.mean(dim=0).clamp(min=1e-30)) ** 2
    centres = (relative * torch.arange(end - first)).sum(dim=1) / relative.sum(dim=1)
    if len(centres) < 2 or bool(hearing.diff().int().sum() > 1):
        return None
    order = torch.stack([torch.arange(len(centres)).float(), centres])
    rises = float(torch.corrcoef(order)[0, 1])
    return None if rises > _RISES else f"positions do not follow the frames (r = {rises:.2f})"


def _dependence(
    adapter: Adapter, medium: Medium, batch: Batch
) -> Iterator[tuple[AudioSpan | ImageSpan | VideoSpan, Tensor]]:
    """Each span, and how its vectors depend on each value: of its own items, `[position, ...]`."""
    values = batch.inputs[medium.values].clone().requires_grad_(True)
    entering: list[Tensor] = []
    hook = adapter.hook("embed", None, keep(entering))
    try:
        with torch.enable_grad():
            adapter.module(**{**batch.inputs, medium.values: values})
    finally:
        hook.remove()
    generator = torch.Generator().manual_seed(0)
    for row, of_row in enumerate(getattr(batch, f"{medium.kind}s")):
        for span in of_row:
            depends = []
            for position in span.positions:
                total = torch.zeros_like(values)
                for _ in range(_DRAWS):
                    mixed = entering[0][row, position] @ torch.randn(
                        adapter.d_model, generator=generator
                    )
                    (gradient,) = torch.autograd.grad(
                        mixed, values, retain_graph=True, allow_unused=True
                    )
                    total += gradient.abs()
                depends.append(total)
            yield span, torch.stack(depends)


def _frames_first(medium: Medium) -> bool:
    return isinstance(medium, Projected | Heard) or (
        isinstance(medium, Frames) and medium.frames_first
    )


def _mask(medium: Medium, batch: Batch, frames: int) -> Tensor | None:
    """The mask of frames among the inputs, if there is one."""
    shape = (len(batch.inputs[medium.values]), frames)
    inputs = [batch.inputs.get(name) for name in medium.joins() if name != medium.values]
    masks = [one for one in inputs if isinstance(one, Tensor) and tuple(one.shape) == shape]
    return masks[0] if masks else None
