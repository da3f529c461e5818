"""Streaming statistics of captured states, by site and label, and which items they hold."""

import bisect
import hashlib
import os
from array import array
from collections.abc import Callable, Sequence
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor

from regap_interp import _checks, _statistics_file
from regap_interp._interrupt import whole
from regap_interp.graph.nodes import LAYER_SITES, MODEL_SITES, Span
from regap_interp.moments import Covariance, Moments

Site = tuple[str, int | None]
"""A site and its decoder layer from 0 (None for a site of the whole model): ("resid_post", 8)."""
Rule = Span | tuple[int, ...]
"""Which positions of a prompt: "last", a span such as "image", or indices."""


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
            ValueError: No sites, unknown ones, one of them twice, or no rule for positions.
        """
        check_sites(sites)
        check_rule(at)
        self.sites = tuple(sites)
        self.at = at
        self.covariance = covariance
        self.model: str | None = None
        """`Adapter.fingerprint` of the model the states are of; set by the first capture."""
        self.edits: str | None = None
        """Digest of the edits the states were read under; None for the model untouched."""
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

    def holding_now(self) -> Callable[[str, str], bool]:
        """`holds` as it stands now, whatever is counted later."""
        counted = {label: numbers[:] for label, numbers in self._items.items()}
        return lambda label, item: _find(counted.get(label, array("q")), _number(item))

    def claim(self, model: str, edits: str | None) -> None:
        """Say where the states come from that are counted from now on.

        Args:
            model: `Adapter.fingerprint`.
            edits: Digest of the edits they are read under.

        Raises:
            ValueError: What is counted already comes from elsewhere.
        """
        if self.model is None and self._items:
            raise ValueError(
                "the statistics hold items, but not of which model they are; set `model` to its "
                "fingerprint, or start new Statistics"
            )
        if self.model not in (None, model):
            raise ValueError(
                f"the statistics are of the model with fingerprint {self.model}, this one has "
                f"{model}; start new Statistics"
            )
        if self._items and self.edits != edits:
            before, now = (
                "the untouched model" if one is None else f"the model under edits {one[:12]}"
                for one in (self.edits, edits)
            )
            raise ValueError(
                f"the statistics are of {before}, the passes would be of {now}; start new "
                "Statistics, or use the same graph"
            )
        self.model, self.edits = model, edits

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
            ValueError: Other sites, positions or covariance; items of another model or under
                other edits; or an item counted in both.
        """
        compared = ["sites", "at", "covariance"]
        compared += ["model", "edits"] if self._items and other._items else []
        for what in compared:
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise ValueError(
                    f"{what} is {mine!r} in one and {theirs!r} in the other; only statistics of "
                    "the same measurement can be merged"
                )
        merged = Statistics(self.sites, at=self.at, covariance=self.covariance)
        whose = self if self._items else other
        merged.model, merged.edits = whose.model, whose.edits
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
        """Write one safetensors file; one that is there stays whole until this one is.

        Raises:
            ValueError: There is no such folder.
        """
        _statistics_file.write(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Statistics":
        """Read what `save` wrote.

        Raises:
            ValueError: Another kind of file, or a damaged one; says what is wrong with it.
        """
        return _statistics_file.read(cls, path)


def check_sites(sites: Sequence[Site]) -> None:
    """Refuse what no model has at any layer.

    Raises:
        ValueError: Naming the site.
    """
    known = (*LAYER_SITES, *MODEL_SITES)
    given: Sequence[Any] = sites
    for one in given:
        if not (isinstance(one, tuple | list) and len(one) == 2):
            raise ValueError(f'site {one!r} is no pair; give ("resid_post", layer)')
        name, layer = one
        if name not in known:
            raise ValueError(f"no site {name!r}; the sites are {', '.join(known)}")
        if (layer is None) != (name in MODEL_SITES):
            raise ValueError(f"{(name, layer)}: {', '.join(MODEL_SITES)} have no layer, others do")
        if layer is not None and (type(layer) is not int or layer < 0):
            raise ValueError(f"{(name, layer)}: layers count from 0, forwards")
    if not sites or len({tuple(one) for one in sites}) != len(sites):
        raise ValueError(f"sites is {list(sites)}; give different (site, layer) pairs")


def check_rule(at: Rule) -> None:
    """Refuse what says no positions.

    Raises:
        ValueError: No span, or indices that are none or stand twice.
    """
    spans = get_args(Span)
    indices = isinstance(at, tuple) and at and all(type(index) is int for index in at)
    if at not in spans and not (indices and len(set(at)) == len(at)):
        raise ValueError(
            f"at is {at!r}; give one of {', '.join(spans)}, or a tuple of indices, each once"
        )


def _number(item: str) -> int:
    """An id as 8 bytes; two of a million ids meet with a chance of 3e-8."""
    given: Any = item
    if not isinstance(given, str):
        raise ValueError(f"id is {given!r}; give a string, such as str(number)")
    return int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest(), signed=True)


def _find(numbers: "array[int]", wanted: int) -> bool:
    place = bisect.bisect_left(numbers, wanted)
    return place < len(numbers) and numbers[place] == wanted
