"""What a patch is measured by: one number for each row, read at its last prompt token."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp.directions import Direction

Seen = Float[Tensor, "row width"]
"""Logits of the last prompt token, or a state there."""
Clean = Float[Tensor, "item width"]
"""Likewise, of the clean run."""


class Metric(ABC):
    """A number for each row."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in files; equal for equal metrics."""

    def named(self, token: Callable[[int], str]) -> str:
        """What it is called in pictures.

        Args:
            token: the text of a token id.
        """
        return self.name

    @property
    def place(self) -> tuple[str, int] | None:
        """Site and layer of the state that it reads; None for logits."""
        return None

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """Ids of the logits that it reads, in that order; None for all."""
        return None

    @abstractmethod
    def of(self, seen: Seen, items: Sequence[int], clean: Clean | None) -> Float[Tensor, "row"]:
        """The numbers, differentiable.

        Args:
            seen: what was read of each row.
            items: which item each row belongs to.
            clean: what was read of every item of the clean run; None while that is read.
        """


@dataclass(frozen=True)
class LogitDifference(Metric):
    """Logit of the right token minus that of the wrong one."""

    right: int | tuple[int, ...]
    """Token id, or one for each item."""
    wrong: int | tuple[int, ...]
    """Likewise."""

    @property
    def name(self) -> str:
        """See `Metric`."""
        return self.named(str)

    def named(self, token: Callable[[int], str]) -> str:
        """See `Metric`."""
        return f"logit difference {_texts(self.right, token)} - {_texts(self.wrong, token)}"

    @property
    def tokens(self) -> tuple[int, ...]:
        """See `Metric`."""
        return tuple(sorted({*_tuple(self.right), *_tuple(self.wrong)}))

    def of(self, seen: Seen, items: Sequence[int], clean: Clean | None) -> Float[Tensor, "row"]:
        """See `Metric`."""
        right, wrong = (self._of_rows(seen, given, items) for given in (self.right, self.wrong))
        return right - wrong

    def _of_rows(self, seen: Tensor, given: int | tuple[int, ...], items: Sequence[int]) -> Tensor:
        if isinstance(given, tuple) and max(items) >= len(given):
            raise ValueError(f"{len(given)} tokens for {max(items) + 1} items; give each one")
        ids = [given[item] if isinstance(given, tuple) else given for item in items]
        columns = torch.tensor([self.tokens.index(one) for one in ids], device=seen.device)
        return seen.double().gather(1, columns[:, None])[:, 0]


@dataclass(frozen=True)
class LogOdds(Metric):
    """Log-odds that the next token is one of a set, such as the openings of refusals."""

    chosen: tuple[int, ...]
    """Token ids."""
    against: tuple[int, ...] | None = None
    """Token ids that they are weighed against; None for the rest of the vocabulary."""

    def __post_init__(self) -> None:
        """Refuse sets that cannot be weighed.

        Raises:
            ValueError: for empty sets, or sets with a common token.
        """
        other = None if self.against is None else set(self.against)
        if not self.chosen or other == set():
            raise ValueError("log-odds need at least one token on each side")
        if other and other & set(self.chosen):
            raise ValueError(f"tokens {sorted(other & set(self.chosen))} are on both sides")

    @property
    def name(self) -> str:
        """See `Metric`."""
        return self.named(str)

    def named(self, token: Callable[[int], str]) -> str:
        """See `Metric`."""
        other = "the rest" if self.against is None else _texts(self.against, token)
        return f"log-odds {_texts(self.chosen, token)} against {other}"

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """See `Metric`."""
        return None if self.against is None else (*self.chosen, *self.against)

    def of(self, seen: Seen, items: Sequence[int], clean: Clean | None) -> Float[Tensor, "row"]:
        """See `Metric`."""
        logits = seen.double()
        if self.against is not None:
            ours, theirs = logits[:, : len(self.chosen)], logits[:, len(self.chosen) :]
        else:
            mine = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
            mine[list(self.chosen)] = True
            ours, theirs = logits[:, mine], logits[:, ~mine]
        return ours.logsumexp(dim=1) - theirs.logsumexp(dim=1)


@dataclass(frozen=True)
class Divergence(Metric):
    """KL divergence of the clean run's next-token distribution from the patched run's, in nats."""

    @property
    def name(self) -> str:
        """See `Metric`."""
        return "KL(clean || patched)"

    def of(self, seen: Seen, items: Sequence[int], clean: Clean | None) -> Float[Tensor, "row"]:
        """See `Metric`."""
        mine = seen.double().log_softmax(dim=1)
        of_items = seen if clean is None else clean[list(items)]
        theirs = of_items.detach().double().log_softmax(dim=1)
        return (theirs.exp() * (theirs - mine)).sum(dim=1)


@dataclass(frozen=True, eq=False)
class Coordinate(Metric):
    """Coordinate along a direction at the last prompt token, in its own unit: 1 is its length."""

    direction: Direction
    """Its origin says where it is read."""

    @property
    def name(self) -> str:
        """See `Metric`."""
        site, layer = self.place
        return f"coordinate at {site}[{layer}]"

    @property
    def place(self) -> tuple[str, int]:
        """See `Metric`."""
        origin = self.direction.origin
        if origin is None or origin.layer is None:
            raise ValueError(
                "the direction does not say at which layer it was measured; make it with "
                "origin=Origin(adapter.fingerprint, site, layer)"
            )
        return origin.site, origin.layer

    def of(self, seen: Seen, items: Sequence[int], clean: Clean | None) -> Float[Tensor, "row"]:
        """See `Metric`."""
        return self.direction.fraction(seen)


@dataclass(frozen=True)
class FromLogits(Metric):
    """A function of the last prompt token's logits."""

    function: Callable[[Tensor], Any]
    """From `[row, d_vocab]` to `[row]`."""

    @property
    def name(self) -> str:
        """See `Metric`."""
        return str(getattr(self.function, "__qualname__", type(self.function).__name__))

    def of(self, seen: Seen, items: Sequence[int], clean: Clean | None) -> Float[Tensor, "row"]:
        """See `Metric`."""
        value = self.function(seen)
        if not isinstance(value, Tensor) or value.shape != seen.shape[:1]:
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the metric {self.name} gave {given} for logits {tuple(seen.shape)} "
                f"[row, d_vocab]; expected one number a row, ({len(seen)},)"
            )
        return value.double()


def as_metric(given: Metric | Callable[[Tensor], Any]) -> Metric:
    """A function of logits as a metric; metrics as they are."""
    return given if isinstance(given, Metric) else FromLogits(given)


def _tuple(given: int | tuple[int, ...]) -> tuple[int, ...]:
    return given if isinstance(given, tuple) else (given,)


def _texts(given: int | tuple[int, ...], token: Callable[[int], str]) -> str:
    return "/".join(map(token, _tuple(given)))
