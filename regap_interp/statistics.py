"""Streaming statistics of captured states, by site and label, and which items they hold."""

import bisect
import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from regap_interp import _checks
from regap_interp._interrupt import whole
from regap_interp.graph.nodes import Span
from regap_interp.moments import Covariance, Moments

Site = tuple[str, int | None]
"""A site and its decoder layer from 0 (None for a site of the whole model): ("resid_post", 8)."""
Rule = Span | tuple[int, ...]
"""Which positions of a prompt: "last", a span such as "image", or indices."""

_FORMAT = "regap_interp.statistics/1"


class Statistics:
    """`Moments` for every (site, layer, label), over the same items at every site.

    A label is any string; "image/harmful" is the usual form, modality and class. An item counts
    once under a label, however often it is added, so an interrupted capture is resumed by giving
    the same items again. What is kept of an item is 8 bytes for its id, so memory is constant but
    for these.
    """

    def __init__(
        self, sites: Sequence[Site], *, at: Rule = "last", covariance: Covariance = None
    ) -> None:
        """Start with no item.

        Args:
            sites: What is measured: `[("resid_post", 7), ("resid_post", 8)]`.
            at: Positions the states are taken at; their mean where there are several.
            covariance: As for `Moments`, for every site and label.

        Raises:
            ValueError: No sites, or one of them twice.
        """
        if not sites or len(set(sites)) != len(sites):
            raise ValueError(f"sites is {list(sites)}; give different (site, layer) pairs")
        self.sites = tuple(sites)
        self.at = at
        self.covariance = covariance
        self.model: str | None = None
        """`Adapter.fingerprint` of the model the states are of; set by the first capture."""
        self._moments: dict[tuple[str, int | None, str], Moments] = {}
        self._items: dict[str, array[int]] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels with items, in the order they came."""
        return tuple(self._items)

    def count(self, label: str) -> int:
        """Items under a label."""
        return len(self._items.get(label, ()))

    def holds(self, label: str, item: str) -> bool:
        """Whether an item is counted under a label."""
        return _find(self._items.get(label, array("q")), _number(item))

    def same_items(self, first: str, second: str) -> bool:
        """Whether two labels have the items of the same ids, as pairs of twins must."""
        return self._items.get(first) == self._items.get(second)

    def fingerprint(self, label: str) -> str:
        """Digest of the ids under a label, whatever their order: hex SHA-256."""
        return hashlib.sha256(self._items.get(label, array("q")).tobytes()).hexdigest()

    def __getitem__(self, key: tuple[str, int | None, str]) -> Moments:
        """The statistics of a (site, layer, label).

        Raises:
            ValueError: Nothing was measured there.
        """
        if key not in self._moments:
            site, layer, label = key
            raise ValueError(
                f"no states of {(site, layer)} with label {label!r}; measured are the labels "
                f"{', '.join(map(repr, self.labels)) or '(none)'} at {list(self.sites)}"
            )
        return self._moments[key]

    def add(
        self, label: str, items: Sequence[str], states: Sequence[Float[Tensor, "item _"]]
    ) -> None:
        """Count items under a label; those that are counted there already are left out.

        An interrupt takes effect before or after all of it, never between two sites.

        Args:
            label: Any string.
            items: Ids, one for each row of every tensor of `states`, each once.
            states: One `[item, width]` tensor for each of `sites`, in their order.

        Raises:
            ValueError: Tensors that do not fit sites and ids, an id given twice, or states that
                are not finite. Nothing is counted then.
        """
        if len(states) != len(self.sites):
            raise ValueError(f"states has {len(states)} tensors for {len(self.sites)} sites")
        numbers = [_number(item) for item in items]
        if len(set(numbers)) != len(numbers):
            raise ValueError("an id is given more than once; every item needs an id of its own")
        known = self._items.get(label, array("q"))
        fresh = [row for row, number in enumerate(numbers) if not _find(known, number)]
        if not fresh:
            return
        for site, value in zip(self.sites, states, strict=True):
            _checks.states(f"states of {site} with label {label!r}", value, least=1)
            before = self._moments.get((*site, label))
            if len(value) != len(items) or (before and before.width != value.shape[1]):
                raise ValueError(
                    f"states of {site} have shape {tuple(value.shape)}; expected {len(items)} "
                    f"items of width {before.width if before else value.shape[1]}"
                )
        with whole():
            for site, value in zip(self.sites, states, strict=True):
                made = Moments(value.shape[1], covariance=self.covariance)
                self._moments.setdefault((*site, label), made).add(value[fresh])
            counted = self._items.setdefault(label, array("q"))
            for row in fresh:
                bisect.insort(counted, numbers[row])

    def merge(self, other: "Statistics") -> "Statistics":
        """The statistics of the items of both, measured apart; neither is changed.

        Raises:
            ValueError: Other sites, positions, covariance or model, or an item counted in both.
        """
        for what in ("sites", "at", "covariance", "model"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs and not (what == "model" and None in (mine, theirs)):
                raise ValueError(
                    f"{what} is {mine!r} in one and {theirs!r} in the other; only statistics of "
                    "the same measurement can be merged"
                )
        merged = Statistics(self.sites, at=self.at, covariance=self.covariance)
        merged.model = self.model or other.model
        for label in dict.fromkeys((*self.labels, *other.labels)):
            mine, theirs = (part._items.get(label, array("q")) for part in (self, other))
            twice = len(set(mine) & set(theirs))
            if twice:
                raise ValueError(
                    f"{twice} item(s) with label {label!r} are counted in both; give every "
                    "process items of its own"
                )
            merged._items[label] = array("q", sorted((*mine, *theirs)))
            for site in self.sites:
                key = (*site, label)
                parts = [part._moments[key] for part in (self, other) if key in part._moments]
                empty = Moments(parts[0].width, covariance=self.covariance)
                merged._moments[key] = parts[0].merge(parts[1] if len(parts) > 1 else empty)
        return merged

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; one that is there stays whole until this one is."""
        tensors: dict[str, Tensor] = {}
        for i, site in enumerate(self.sites):
            for j, label in enumerate(self.labels):
                part = self._moments[(*site, label)].tensors()
                tensors |= {f"{i}.{j}.{name}": value for name, value in part.items()}
        for j, counted in enumerate(self._items.values()):
            tensors[f"{j}.items"] = torch.tensor(counted.tolist(), dtype=torch.int64)
        about = {
            "format": _FORMAT,
            "sites": self.sites,
            "at": self.at,
            "covariance": self.covariance,
            "model": self.model,
            "labels": self.labels,
        }
        partial = Path(f"{os.fspath(path)}.partial")
        save_file(tensors, partial, metadata={"about": json.dumps(about)})
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Statistics":
        """Read what `save` wrote.

        Raises:
            ValueError: Another kind of file.
        """
        with safe_open(os.fspath(path), framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("about", "{}"))
            if about.get("format") != _FORMAT:
                raise ValueError(f"{path} holds {about.get('format')!r}; expected {_FORMAT!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        at: Rule = tuple(about["at"]) if isinstance(about["at"], list) else about["at"]
        sites = [(site, layer) for site, layer in about["sites"]]
        loaded = cls(sites, at=at, covariance=about["covariance"])
        loaded.model = about["model"]
        for j, label in enumerate(about["labels"]):
            loaded._items[label] = array("q", tensors[f"{j}.items"].tolist())
            for i, site in enumerate(loaded.sites):
                part = {
                    name: tensors[f"{i}.{j}.{name}"]
                    for name in ("mean", "squares", "scatter", "rows")
                    if f"{i}.{j}.{name}" in tensors
                }
                loaded._moments[(*site, label)] = Moments.from_tensors(
                    loaded.count(label), part, loaded.covariance
                )
        return loaded


def _number(item: str) -> int:
    """An id as 8 bytes; two of a million ids meet with a chance of 3e-8."""
    return int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest(), signed=True)


def _find(numbers: "array[int]", wanted: int) -> bool:
    place = bisect.bisect_left(numbers, wanted)
    return place < len(numbers) and numbers[place] == wanted
