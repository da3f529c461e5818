"""Patched runs that begin at the patched layer and the first patched position.

Where attention is causal, a patch at position p changes nothing before p: the keys and values of
those positions are the base run's. Nothing of that is taken for granted: `Resumed` runs the layers
by hand, compares with the recorded pass, and moves positions to see what they change.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache

from analyses.patching.caches import Listening, Prefix, causal_mask
from analyses.patching.positions import PositionAxes, position_axes
from analyses.patching.recorded import Change, Reader, Recorded, hooked
from model_adapters import Adapter
from model_adapters.errors import AdapterError
from model_adapters.resume_probe import call_layer, is_cache, mapped, repeated
from model_adapters.selfcheck import TOLERANCE

_TRIED = (
    AdapterError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Resumed:
    """Runs layers of a recorded pass again, patched.

    `obstacle` says why that cannot be done from `first` on; `sound` tells from which position a run
    may begin.
    """

    def __init__(
        self, adapter: Adapter, base: Recorded, site: str, layers: Sequence[int], room: int
    ) -> None:
        """Try what can be done.

        Args:
            adapter: the model.
            base: a pass recorded with its layers' calls.
            site: that will be patched.
            layers: at which it will be.
            room: rows of full width that fit into memory.
        """
        self.adapter, self.base, self.site, self.layers = adapter, base, site, tuple(layers)
        self.width = base.batch.roles.shape[1]
        self.first = max(max(adapter.discontinuities, default=-1) + 1, min(layers))
        """Cells of earlier layers need whole passes."""
        self.keys: dict[int, tuple[Tensor, Tensor]] = {}
        self.axes = PositionAxes()
        self.tested: dict[int, frozenset[int]] = {}
        """By item, positions that runs may begin at where some others are unsound."""
        self.causal = False
        self.slower: str | None = None
        """Why runs cannot begin at the patched position, if they cannot."""
        self.obstacle = self._obstacle()
        if self.obstacle is None:
            self._look_for_shortcuts(room)

    @property
    def size(self) -> int:
        """Bytes of keys and values."""
        return sum(t.numel() * t.element_size() for pair in self.keys.values() for t in pair)

    def sound(self, item: int, start: int) -> int:
        """The latest position, at most `start`, that a run of the item may begin at."""
        if self.causal:
            return start
        return max((s for s in self.tested.get(item, ()) if s <= start), default=0)

    def run(
        self, item: int, entries: Sequence[int], start: int, change: Change, reader: Reader
    ) -> Float[Tensor, "row width"]:
        """States where the metric is read, one row for each entry.

        Args:
            item: row of the base run that all rows are copies of.
            entries: layers at which the rows begin, rising.
            start: position at which all rows begin.
            change: gets the layer and the rows that have begun.
            reader: where the metric is read.
        """
        read: list[Tensor] = []
        place = int(self.base.batch.last[item]) - start

        def look(value: Tensor) -> None:
            read.append(value[:, place])

        handle = None
        try:
            with hooked(self.adapter, self.site, self.layers, change):
                handle = self.adapter.hook(*reader.place, look)
                self._through(item, entries, start, reader.layer)
        finally:
            if handle is not None:
                handle.remove()
        return read[0]

    def _through(self, item: int, entries: Sequence[int], start: int, until: int) -> Tensor:
        begun = 0
        states = self.base.states[entries[0]][:0, start:]
        for layer in range(entries[0], until + 1):
            new = sum(entry == layer for entry in entries)
            if new:
                fresh = self.base.states[layer][item, start:].expand(new, -1, -1)
                states = torch.cat([states, fresh.to(states.device)]) if begun else fresh.clone()
                begun += new
            states = self._layer(layer, states, item, start)
        return states

    def _layer(self, layer: int, states: Tensor, item: int, start: int) -> Tensor:
        call, rows = self.base.calls[layer], len(states)
        found, batch = self.adapter.layer_arguments, len(self.base.batch)
        only = torch.tensor([item])
        cache = None
        if start:
            keys, values = (one[item : item + 1, :, :start] for one in self.keys[layer])
            cache = Prefix(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))

        def leaf(path: Any, value: Any) -> Any:
            if is_cache(value):
                return cache
            if not isinstance(value, Tensor):
                return value
            value = found.cut(path, value, only, batch)
            axis = found.axes[path, value.ndim]
            if start:
                value = self.axes.cut(path, value, start, self.width)
            if axis is None or value.shape[axis] != 1:
                return value
            return value.expand([rows if i == axis else -1 for i in range(value.ndim)])

        args = mapped(call.args[1:], ("positional",), leaf)
        kwargs = mapped(call.kwargs, (), leaf)
        if start and kwargs.get("attention_mask", states) is None:
            kwargs["attention_mask"] = causal_mask(states, start)
        return call_layer(self.adapter, layer, (states, *args), kwargs)

    # --- what is sound ---

    def _obstacle(self) -> str | None:
        """Layers run again by hand must give what they gave; their keys and values are kept."""
        if self.adapter.family.altup:
            return "its layers pass on several streams"
        if self.first > max(self.layers):
            return f"the model adds features to the stream after layer {self.first - 1}"
        if self.adapter.layer_arguments.obstacle is not None:
            return self.adapter.layer_arguments.obstacle
        for layer in range(self.first, self.adapter.n_layers):
            listening = Listening()
            try:
                again = self._repeat(layer, listening)
            except _TRIED:
                try:
                    again = self._repeat(layer, None)
                except _TRIED as error:
                    return f"layer {layer} cannot be run by hand: {error}"
            if not self._same(again, self.base.states[layer + 1], self.base.batch.prompt_mask):
                return f"layer {layer}, run by hand, gives another output"
            if listening.made is not None:
                self.keys[layer] = listening.made
        return None

    def _repeat(self, layer: int, cache: Cache | None) -> Tensor:
        call, found = self.base.calls[layer], self.adapter.layer_arguments
        args, kwargs = repeated(
            found, call.args, call.kwargs, rows=None, batch=len(self.base.batch), cache=cache
        )
        return call_layer(self.adapter, layer, (self.base.states[layer], *args), kwargs)

    def _look_for_shortcuts(self, room: int) -> None:
        """Find positions that do not see later ones, and that runs may therefore begin behind."""
        shape = (len(self.base.batch), self.width)
        layers = range(self.first, self.adapter.n_layers)
        whole = [
            layer in self.keys and (one.shape[0], one.shape[2]) == shape
            for layer in layers
            for one in self.keys.get(layer, ())[:1]
        ]
        if len(whole) < len(layers) or not all(whole):
            self.slower = "some layers keep no keys and values of single positions"
            return
        try:
            self.axes = position_axes(self.adapter)
            kinds = self.base.batch.modalities
            first_of_kind = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
            found = {item: self._tested(item, room) for item in first_of_kind}
            if all(tried == sound for tried, sound in found.values()) and not self._open_ahead():
                self.causal = True
                return
            others = [item for item in range(len(kinds)) if item not in found]
            found |= {item: self._tested(item, room) for item in others}
        except _TRIED as error:
            self.slower = f"a trial of runs from later positions failed: {error}"
            return
        self.slower = "positions see later ones"
        self.tested = {item: sound for item, (_, sound) in found.items()}

    def _tested(self, item: int, room: int) -> tuple[frozenset[int], frozenset[int]]:
        """Positions that a run was begun at, and those of them at which that was right."""
        tried = _telling(self.base.batch.roles[item].tolist())
        sound: set[int] = set()
        for at in range(0, len(tried), max(room - 1, 1)):
            some = tried[at : at + max(room - 1, 1)]
            sound |= {start for start in some if start not in self._leaks(item, some)}
        return frozenset(tried), frozenset(s for s in sound if self._continues(item, s))

    def _leaks(self, item: int, starts: Sequence[int]) -> set[int]:
        """Those of `starts` before which states move when those from there on are moved."""
        draw = torch.Generator().manual_seed(0)

        def move(layer: int, states: Tensor) -> Tensor:
            noise = torch.randn(states.shape[1:], generator=draw).to(states)
            new = states.clone()
            for row, start in enumerate(starts, 1):
                new[row, start:] += 3 * states[0].std() * noise[start:]
            return new

        with hooked(self.adapter, "resid_pre", [self.first], move):
            entries = [self.first] * (1 + len(starts))
            moved = self._through(item, entries, 0, self.adapter.n_layers - 1)
        mask = self.base.batch.prompt_mask[item]
        return {
            start
            for row, start in enumerate(starts, 1)
            if not self._same(moved[row, :start], moved[0, :start], mask[:start], strict=True)
        }

    def _continues(self, item: int, start: int) -> bool:
        """Whether a run from there on, nothing patched, gives what the base run gave."""
        again = self._through(item, [self.first], start, self.adapter.n_layers - 1)[0]
        base = self.base.states[self.adapter.n_layers][item, start:]
        return self._same(again, base, self.base.batch.prompt_mask[item, start:])

    def _open_ahead(self) -> bool:
        """Whether a mask that layers were given lets a position see a later one."""
        masks = {id(c.kwargs.get("attention_mask")): c.kwargs for c in self.base.calls.values()}
        for kwargs in masks.values():
            mask = kwargs.get("attention_mask")
            if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-2] > 1:
                seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
                prompt = self.base.batch.prompt_mask
                ahead = seen.triu(1) & prompt[:, None, :, None] & prompt[:, None, None, :]
                if bool(ahead.any()):
                    return True
        return False

    def _same(self, got: Tensor, expected: Tensor, mask: Tensor, *, strict: bool = False) -> bool:
        got, expected = got[mask], expected[mask]
        tolerance = TOLERANCE.get(expected.dtype, 2e-2) / (10 if strict else 1)
        largest = expected.abs().max().clamp(min=1e-30)
        return bool((got - expected).abs().max() <= tolerance * largest)


def _telling(roles: Sequence[int]) -> list[int]:
    """Positions to try: where a run of one role begins, its middle, and the last one."""
    begins = [i for i, role in enumerate(roles) if i and role != roles[i - 1]]
    ends = [*begins[1:], len(roles)] if begins else []
    middles = [(a + b) // 2 for a, b in zip(begins, ends, strict=True)]
    prompt = [i for i, role in enumerate(roles) if role]
    wanted = {*begins, *middles, (prompt[0] + prompt[-1]) // 2, prompt[-1]}
    tried = sorted(i for i in wanted if prompt[0] < i <= prompt[-1])
    step = -(-len(tried) // 10) if tried else 1
    return sorted({*tried[::step], *tried[-1:]})
