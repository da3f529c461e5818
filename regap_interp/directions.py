"""Refusal and drift directions of one layer, and coordinates along them.

Both are differences of means of last-prompt-token states, computed in float64. A direction
keeps its raw length: subtracting `1.0 * vector` undoes the mean shift exactly.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp import _checks
from regap_interp._linear import orthonormal_basis, remove_span
from regap_interp.moments import Moments


@dataclass(frozen=True)
class Origin:
    """Where a direction was measured, so that it cannot be used elsewhere by mistake."""

    model: str
    """`Adapter.fingerprint` of the model."""
    site: str
    """Site of the states, such as "resid_post"."""
    layer: int | None
    """Decoder layer, from 0; None for a site without layers."""
    position: str | None = None
    """Prompt positions the states were read at, as `Recipe.position` has them: "last", "prompt",
    "-2"; None where it is not recorded."""
    edits: str | None = None
    """`Statistics.edits`: what the model ran under; None for the model untouched."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in the residual stream of one layer, with the zero point of its coordinate.

    >>> import torch
    >>> from regap_interp import refusal_direction
    >>> harmful = torch.tensor([[3.0, 0.0], [3.0, 2.0]])
    >>> harmless = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    >>> direction = refusal_direction(harmful, harmless)
    >>> direction.vector.tolist(), direction.norm
    ([2.0, 0.0], 2.0)
    >>> direction.fraction(torch.tensor([[1.0, 9.0], [2.0, 9.0]])).tolist()
    [0.0, 0.5]
    """

    vector: Float[Tensor, "d_model"]
    """Raw difference of means, float64, in the units of the residual stream."""
    centre: Float[Tensor, "d_model"]
    """The state whose coordinate is 0: the mean the difference starts from."""
    n_towards: int
    """Items in the mean that `vector` points to (harmful text, or media)."""
    n_from: int
    """Items in the mean that `vector` points from (harmless text, or text twins)."""
    origin: Origin | None = None
    """Where the states come from; None for a direction made of bare tensors."""

    def __post_init__(self) -> None:
        """Bring to float64, and refuse a direction nothing can be measured along."""
        for name in ("vector", "centre"):
            given = getattr(self, name)
            if given.dtype != torch.float64 or given.requires_grad:
                object.__setattr__(self, name, given.detach().to(torch.float64))
        if self.vector.ndim != 1:
            raise ValueError(
                f"vector has shape {tuple(self.vector.shape)}; a direction is one vector [d_model]"
            )
        if self.n_towards < 0 or self.n_from < 0:
            raise ValueError(
                f"n_towards is {self.n_towards}, n_from {self.n_from}; numbers of items are 0 "
                "(unknown) or more"
            )
        if self.vector.shape != self.centre.shape:
            raise ValueError(
                f"vector has shape {tuple(self.vector.shape)}, centre "
                f"{tuple(self.centre.shape)}; expected the same [d_model]"
            )
        if not (self.vector.isfinite().all() and self.centre.isfinite().all()):
            raise ValueError("the direction is not finite; check the states it was made from")
        if not self.vector.any():
            raise ValueError(
                "the direction is zero: both means are the same, so this layer does not tell "
                "the two sets apart; take other items or a later layer"
            )

    @property
    def norm(self) -> float:
        """Length of `vector`."""
        return float(self.vector.norm())

    @property
    def unit(self) -> Float[Tensor, "d_model"]:
        """`vector` scaled to length 1."""
        return self.vector / self.vector.norm()

    def coordinate(self, states: Float[Tensor, "*item d_model"]) -> Float[Tensor, "*item"]:
        """Signed distance from `centre` along the direction, in residual-stream units.

        Along a refusal direction harmless text lies around 0 and harmful text around `norm`;
        along a drift direction the text twins lie around 0 and their media forms around `norm`.
        """
        _checks.same_width("states", states, "the direction", self.vector)
        centre = self.centre.to(states.device)
        return (states.to(torch.float64) - centre) @ self.unit.to(states.device)

    def fraction(self, states: Float[Tensor, "*item d_model"]) -> Float[Tensor, "*item"]:
        """`coordinate` in units of `norm`: 0 at `centre`, 1 at the mean pointed to."""
        return self.coordinate(states) / self.norm


def refusal_direction(
    harmful: Float[Tensor, "harmful d_model"] | Moments,
    harmless: Float[Tensor, "harmless d_model"] | Moments,
    *,
    origin: Origin | None = None,
) -> Direction:
    """Mean of harmful minus mean of harmless *text* requests, centred on the harmless mean.

    Args:
        harmful: States of harmful text requests at one layer, at least 2, or their moments.
        harmless: States of harmless text requests at the same layer, at least 2, or their moments.
        origin: Where the states were taken.

    Raises:
        ValueError: Too few items, different widths, non-finite states, or equal means.
    """
    n_towards, towards = count_and_mean("harmful", harmful)
    n_from, centre = count_and_mean("harmless", harmless)
    _checks.same_width("harmful", towards, "harmless", centre)
    return Direction(towards - centre, centre, n_towards, n_from, origin)


def drift_direction(
    media: Float[Tensor, "pair d_model"],
    text: Float[Tensor, "pair d_model"],
    *,
    media_ids: Sequence[Hashable],
    text_ids: Sequence[Hashable],
    origin: Origin | None = None,
) -> Direction:
    """Mean over pairs of media form minus text twin, centred on the twins' mean.

    Args:
        media: States of one modality's items at one layer, at least 2.
        text: States of their text twins at the same layer, in any order.
        media_ids: One id for each row of `media`.
        text_ids: One id for each row of `text`; the same ids, each once.
        origin: Where the states were taken.

    Raises:
        ValueError: Ids that do not pair one to one, too few pairs, different widths,
            non-finite states, or equal means.

    >>> import torch
    >>> from regap_interp import drift_direction
    >>> media, text = torch.tensor([[0.0, 5.0], [1.0, 6.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    >>> drift_direction(media, text, media_ids=["a", "b"], text_ids=["b", "a"]).vector.tolist()
    [0.0, 5.0]
    """
    n_towards, towards = count_and_mean("media", media)
    n_from, centre = count_and_mean("text", text)
    _checks.same_width("media", towards, "text", centre)
    check_pairs(media_ids, n_towards, text_ids, n_from)
    # The mean of paired differences is the difference of means: order does not matter.
    return Direction(towards - centre, centre, n_towards, n_from, origin)


def orthogonalise(
    direction: Direction,
    against: Direction
    | Float[Tensor, "d_model"]
    | Float[Tensor, "other d_model"]
    | Iterable[Direction | Float[Tensor, "d_model"]],
) -> Direction:
    """`direction` without its components along `against`, at the length that is left.

    The zero point stays. Steering along the result does not move the coordinates of `against`.

    Args:
        direction: What is changed.
        against: A direction or bare vector, several of them, or the rows of a tensor.

    Raises:
        ValueError: `direction` lies in the span of `against`, widths differ, or one of `against`
            was measured on another model, site or layer.

    >>> import torch
    >>> from regap_interp import Direction, orthogonalise
    >>> drift = Direction(torch.tensor([3.0, 4.0]), torch.zeros(2), n_towards=8, n_from=8)
    >>> orthogonalise(drift, against=torch.tensor([1.0, 0.0])).vector.tolist()
    [0.0, 4.0]
    """
    others: list[Any]
    if isinstance(against, Direction):
        others = [against]
    elif isinstance(against, Tensor):
        others = list(torch.atleast_2d(against))
    else:
        others = list(against)
    wrong = [one for one in others if not isinstance(one, Direction | Tensor)]
    if wrong:
        raise ValueError(
            f"against holds a {type(wrong[0]).__name__}; give directions or vectors [d_model]"
        )
    measured = [one for one in others if isinstance(one, Direction)]
    check_same_place([direction, *measured])
    vectors = [one.vector if isinstance(one, Direction) else one for one in others]
    return dataclasses.replace(direction, vector=remove_span(direction.vector, vectors))


def random_orthogonal(
    n: int,
    *,
    like: Float[Tensor, "d_model"],
    against: Iterable[Float[Tensor, "d_model"]],
    seed: int = 0,
) -> Float[Tensor, "n d_model"]:
    """Control directions: isotropic, orthogonal to every vector of `against`, as long as `like`.

    Args:
        n: Directions to draw; they are independent of each other.
        like: The vector whose length they take; they need not be orthogonal to it.
        against: Vectors that steering along the result must not move, such as refusal.
        seed: The same seed gives the same directions.

    Raises:
        ValueError: Widths differ, or `against` spans the whole space.

    >>> import torch
    >>> from regap_interp import random_orthogonal
    >>> refusal, drift = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([3.0, 4.0, 0.0])
    >>> control = random_orthogonal(1, like=drift, against=[refusal], seed=0)[0]
    >>> round(control.norm().item(), 6), abs(control[2].item()) < 1e-12
    (5.0, True)
    """
    exact = like.detach().to("cpu", torch.float64)
    basis = orthonormal_basis(list(against), like=exact)
    if len(basis) >= len(exact):
        raise ValueError(f"against spans all {len(exact)} dimensions; nothing is orthogonal to it")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, len(exact), generator=generator, dtype=torch.float64)
    for _ in range(2):  # the second pass removes what rounding left of the first
        drawn = drawn - (drawn @ basis.T) @ basis
    return drawn * (exact.norm() / drawn.norm(dim=1, keepdim=True))


def cosine(first: Direction, second: Direction) -> float:
    """Cosine of the angle between two directions, in [-1, 1].

    Raises:
        ValueError: They are of different models or widths.

    >>> import torch
    >>> from regap_interp import Direction, cosine
    >>> x, y = (Direction(torch.tensor(v), torch.zeros(2), 8, 8) for v in ([1.0, 0.0], [-3.0, 4.0]))
    >>> round(cosine(x, y), 6)
    -0.6
    """
    check_same_place([first, second], fields=("model",))
    _checks.same_width("first", first.vector, "second", second.vector)
    return float((first.unit @ second.unit).clamp(-1, 1))


def check_same_place(
    directions: Iterable[Direction], *, fields: Sequence[str] = ("model", "site", "layer")
) -> None:
    """Refuse directions whose origins differ; those without origin are not asked.

    Raises:
        ValueError: Naming both origins.
    """
    origins = [one.origin for one in directions if one.origin is not None]
    for other in origins[1:]:
        for name in fields:
            if getattr(origins[0], name) != getattr(other, name):
                raise ValueError(
                    f"directions of different {name}s do not belong together: {origins[0]} and "
                    f"{other}; measure both at one place, or take the origin off "
                    "(dataclasses.replace(direction, origin=None)) if you mean it"
                )


def count_and_mean(
    name: str, states: Float[Tensor, "item d_model"] | Moments
) -> tuple[int, Float[Tensor, "d_model"]]:
    """Number of items and their mean in float64.

    Raises:
        ValueError: Fewer than 2 items, or states that are not finite.
    """
    if not isinstance(states, Moments):
        exact = _checks.states(name, states, least=2)
        return len(exact), exact.mean(dim=0)
    if states.count < 2:
        raise ValueError(f"{name} holds {states.count} item(s); at least 2 are needed")
    return states.count, states.mean.clone()


def check_pairs(
    media_ids: Sequence[Hashable], n_media: int, text_ids: Sequence[Hashable], n_text: int
) -> None:
    """Refuse ids that do not pair one to one.

    Raises:
        ValueError: Naming ids that are missing, or there twice.
    """
    for name, ids, count in (("media", media_ids, n_media), ("text", text_ids, n_text)):
        if len(ids) != count:
            raise ValueError(f"{name}_ids has {len(ids)} ids for {count} rows of {name}")
        if len(set(ids)) != count:
            twice = next(one for index, one in enumerate(ids) if one in ids[:index])
            raise ValueError(f"{name}_ids names {twice!r} more than once; ids must be unique")
    unpaired = set(media_ids) ^ set(text_ids)
    if unpaired:
        shown = ", ".join(sorted(map(repr, unpaired))[:5])
        raise ValueError(
            f"{len(unpaired)} id(s) have no partner: {shown}; every media item needs the text "
            "twin with its id, and the reverse"
        )
