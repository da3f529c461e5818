"""Refusal and drift directions from other data and by other estimators than `directions`.

All take float64 means of states at one site. A direction keeps a length that means something: the
mean pointed to has the coordinate `norm`, but for `shared_direction` and `incremental`, whose
lengths are said there.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp import _checks
from regap_interp.directions import (
    Direction,
    Origin,
    check_pairs,
    check_same_place,
    count_and_mean,
    drift_direction,
    refusal_direction,
)
from regap_interp.lda import lda_direction
from regap_interp.statistics import Rule, Site, Statistics

Pairs = Literal["harmful", "benign", "balanced", "unpaired", "blank"]


@dataclass(frozen=True, eq=False)
class PairedDirection:
    """A drift direction with the spread of the pairs it is the mean of."""

    direction: Direction
    variance: Float[Tensor, "d_model"]
    """Unbiased variance over pairs of (media - text), in each coordinate."""
    along: float
    """Standard deviation over pairs of (media - text) along the direction, in stream units."""

    @property
    def standard_error(self) -> Float[Tensor, "d_model"]:
        """Of each coordinate of the direction's vector."""
        return (self.variance / self.direction.n_towards).sqrt()

    @property
    def noise(self) -> float:
        """Length expected of the vector by chance if there were no drift, over its length.

        Well below 1 where the pairs tell a direction; near 1 where it is sampling noise.
        """
        return float(self.standard_error.norm()) / self.direction.norm


@dataclass(frozen=True, eq=False)
class SharedDirection:
    """What the directions of several modalities have in common."""

    direction: Direction
    """The strongest common axis, as long as the mean of the vectors' lengths."""
    share: float
    """Of the summed squared lengths of the vectors, what lies along it: 1 / n to 1."""
    cosines: tuple[float, ...]
    """Of each vector with it, in their order; a negative one points away."""


def paired_drift(
    media: Float[Tensor, "pair d_model"],
    text: Float[Tensor, "pair d_model"],
    *,
    media_ids: Sequence[Hashable],
    text_ids: Sequence[Hashable],
    origin: Origin | None = None,
) -> PairedDirection:
    """`drift_direction`, with the spread of the pairs; takes what it takes, see there.

    Raises:
        ValueError: As `drift_direction` does.
    """
    direction = drift_direction(media, text, media_ids=media_ids, text_ids=text_ids, origin=origin)
    row_of = {one: row for row, one in enumerate(text_ids)}
    order = [row_of[one] for one in media_ids]
    differences = media.detach().to(torch.float64) - text.detach().to(torch.float64)[order]
    return PairedDirection(
        direction,
        variance=differences.var(dim=0),
        along=float((differences @ direction.unit.to(differences.device)).std()),
    )


def drift_of(
    pairs: Pairs,
    media: Float[Tensor, "media d_model"],
    text: Float[Tensor, "text d_model"],
    *,
    harmful: Mapping[Hashable, bool] | None = None,
    media_ids: Sequence[Hashable] | None = None,
    text_ids: Sequence[Hashable] | None = None,
    origin: Origin | None = None,
) -> Direction:
    """A drift direction from one of the sets of items that it may be estimated on.

    Args:
        pairs: "harmful" or "benign": the pairs of that class. "balanced": both classes with equal
            weight, whatever their sizes. "unpaired": all of `media` against all of `text`.
            "blank": `media` are the text requests with a blank picture or silence added, so that
            the direction is that of the carrier alone.
        media: States with the medium.
        text: States of text.
        harmful: Whether an id is harmful; for the first three.
        media_ids: Of the rows of `media`; for all but "unpaired".
        text_ids: Of the rows of `text`; for all but "unpaired".
        origin: Where the states were taken.

    Raises:
        ValueError: As `drift_direction` does, for a class without items, ids without a class, or
            another word for `pairs`.
    """
    if pairs not in get_args(Pairs):
        raise ValueError(f"pairs is {pairs!r}; give one of {', '.join(get_args(Pairs))}")
    if pairs == "unpaired":
        n, towards = count_and_mean("media", media)
        m, centre = count_and_mean("text", text)
        _checks.same_width("media", towards, "text", centre)
        return Direction(towards - centre, centre, n, m, origin)
    if media_ids is None or text_ids is None:
        raise ValueError(f'pairs="{pairs}" needs media_ids and text_ids')
    if pairs == "blank":
        return drift_direction(media, text, media_ids=media_ids, text_ids=text_ids, origin=origin)
    if harmful is None:
        raise ValueError(f'pairs="{pairs}" needs `harmful`, whether each id is harmful')
    unknown = [one for one in (*media_ids, *text_ids) if one not in harmful]
    if unknown:
        raise ValueError(f"`harmful` does not say it of {unknown[0]!r}; give it for every id")
    check_pairs(media_ids, len(media), text_ids, len(text))

    def of_class(wanted: bool) -> Direction:
        rows, twins = (
            [row for row, one in enumerate(ids) if harmful[one] == wanted]
            for ids in (media_ids, text_ids)
        )
        if len(rows) < 2:
            name = "harmful" if wanted else "benign"
            raise ValueError(
                f"media holds {len(rows)} item(s) that are {name}; at least 2 are needed"
            )
        return drift_direction(
            media[rows],
            text[twins],
            media_ids=[media_ids[row] for row in rows],
            text_ids=[text_ids[row] for row in twins],
            origin=origin,
        )

    if pairs == "balanced":
        return _equal_weights([of_class(True), of_class(False)])
    return of_class(pairs == "harmful")


def refusal_from(
    statistics: Statistics,
    site: Site,
    *,
    harmful: str = "text/harmful",
    harmless: str = "text/benign",
) -> Direction:
    """`refusal_direction` of two labels of streamed statistics.

    Args:
        statistics: Of one model.
        site: Such as `("resid_post", 7)`.
        harmful: Label of the class pointed to.
        harmless: Label of the other class.

    Raises:
        ValueError: A label without items, or too few.
    """
    return refusal_direction(
        statistics[(*site, harmful)],
        statistics[(*site, harmless)],
        origin=_origin(statistics, site),
    )


def lda_from(
    statistics: Statistics,
    site: Site,
    *,
    harmful: str = "text/harmful",
    harmless: str = "text/benign",
    shrinkage: float = 0.1,
) -> Direction:
    """`lda_direction` of two labels of statistics streamed with a covariance.

    Args:
        statistics: Of one model.
        site: Such as `("resid_post", 7)`.
        harmful: Label of the class pointed to.
        harmless: Label of the other class.
        shrinkage: As for `lda_direction`; it cannot be chosen from statistics.

    Raises:
        ValueError: As `lda_direction` does, or a label without items.
    """
    return lda_direction(
        statistics[(*site, harmful)],
        statistics[(*site, harmless)],
        shrinkage=shrinkage,
        origin=_origin(statistics, site),
    )


def drift_from(
    statistics: Statistics,
    site: Site,
    labels: Sequence[tuple[str, str]],
    *,
    paired: bool = True,
) -> Direction:
    """A drift direction from streamed statistics.

    Args:
        statistics: Of media and text.
        site: Where.
        labels: (media, text) labels; several are averaged with equal weight. Harmful pairs are
            `[("image/harmful", "text/harmful")]`, balanced ones that and
            `("image/benign", "text/benign")`.
        paired: Refuse labels whose items have different ids.

    Raises:
        ValueError: A label without items, too few, ids that do not pair, or a pair of labels given
            twice.
    """
    if not labels:
        raise ValueError("labels is empty; give at least one (media, text) pair of labels")
    if len(set(labels)) != len(labels):
        raise ValueError(f"labels is {list(labels)}; give every (media, text) pair once")
    found = []
    for media, text in labels:
        n, towards = count_and_mean(repr(media), statistics[(*site, media)])
        m, centre = count_and_mean(repr(text), statistics[(*site, text)])
        if paired and not statistics.same_items(media, text):
            raise ValueError(
                f"the items of {media!r} ({n}) and {text!r} ({m}) have different ids; capture the "
                "text twin of every item, or give paired=False"
            )
        found.append(Direction(towards - centre, centre, n, m, _origin(statistics, site)))
    return _equal_weights(found)


def shared_direction(directions: Sequence[Direction]) -> SharedDirection:
    """The first right singular vector of the stacked vectors, which are *not* centred.

    Centring them, as a principal component analysis does, would take away just what they share.
    The sign is that of their mean; the zero point that of the first direction (give text first).
    The length is the mean of theirs, so the means they point to lie near `norm`, not at it.

    Raises:
        ValueError: Fewer than 2 directions, different widths, directions of different models,
            sites or layers, or vectors whose mean does not tell the sign.

    >>> import torch
    >>> from regap_interp import Direction, shared_direction
    >>> image, audio = ([3.0, 1.0], [3.0, -1.0])
    >>> found = shared_direction(
    ...     [Direction(torch.tensor(v), torch.zeros(2), 8, 8) for v in (image, audio)]
    ... )
    >>> round(found.share, 6), [round(value, 2) for value in found.cosines]
    (0.9, [0.95, 0.95])
    """
    if len(directions) < 2:
        raise ValueError(f"{len(directions)} direction(s) given; at least 2 can share something")
    for number, one in enumerate(directions[1:], start=1):
        _checks.same_width(f"direction {number}", one.vector, "direction 0", directions[0].vector)
    check_same_place(directions)
    vectors = torch.stack([one.vector for one in directions])
    _, sizes, basis = torch.linalg.svd(vectors, full_matrices=False)
    axis = basis[0]
    lean = float(vectors.mean(dim=0) @ axis)
    if abs(lean) < 1e-9 * float(sizes[0]):
        raise ValueError(
            "the vectors cancel along their common axis, so its sign is open; check their signs"
        )
    axis = axis if lean > 0 else -axis
    lengths = vectors.norm(dim=1)
    return SharedDirection(
        Direction(
            axis * lengths.mean(),
            directions[0].centre,
            sum(one.n_towards for one in directions),
            sum(one.n_from for one in directions),
            directions[0].origin,
        ),
        share=float(sizes[0] ** 2 / (sizes**2).sum()),
        cosines=tuple((vectors @ axis / lengths).tolist()),
    )


def incremental(drifts: Sequence[Direction]) -> list[Direction]:
    """What each layer adds to the drift: its direction minus that of the one before.

    The stream carries drift on, so subtracting the whole drift at several layers would count it
    several times; subtract these instead. The first one stays as it is, zero points too.

    Args:
        drifts: Cumulative drift directions of rising layers.

    Raises:
        ValueError: Layers that do not rise, different widths, models or sites, or a layer that
            adds nothing.

    >>> import torch
    >>> from regap_interp import Direction, incremental
    >>> drifts = [Direction(torch.tensor([v, 0.0]), torch.zeros(2), 8, 8) for v in (2.0, 5.0)]
    >>> [one.vector.tolist() for one in incremental(drifts)]
    [[2.0, 0.0], [3.0, 0.0]]
    """
    check_same_place(drifts, fields=("model", "site"))
    layers = [one.origin.layer for one in drifts if one.origin and one.origin.layer is not None]
    if layers != sorted(set(layers)):
        raise ValueError(f"the directions are of layers {layers}; give them in rising order")
    return [
        *drifts[:1],
        *(
            dataclasses.replace(after, vector=after.vector - before.vector)
            for before, after in itertools.pairwise(drifts)
        ),
    ]


def cumulative(increments: Sequence[Direction]) -> list[Direction]:
    """The drifts that `incremental` was given."""
    sums = torch.stack([one.vector for one in increments]).cumsum(dim=0)
    return [
        dataclasses.replace(one, vector=total) for one, total in zip(increments, sums, strict=True)
    ]


def check_disjoint(splits: Mapping[str, Iterable[Hashable]]) -> None:
    """Refuse ids that stand in two splits, or twice in one.

    Raises:
        ValueError: Naming the splits and some ids.

    >>> from regap_interp import check_disjoint
    >>> check_disjoint({"calibration": ["a", "b"], "report": ["c"]})
    >>> check_disjoint({"calibration": ["a", "b"], "report": ["b"]})
    Traceback (most recent call last):
    ValueError: 1 item(s) are in both 'calibration' and 'report': 'b'; split by id, so ...
    """
    given = {name: list(ids) for name, ids in splits.items()}
    sets = {name: set(ids) for name, ids in given.items()}
    for name, ids in given.items():
        if len(sets[name]) != len(ids):
            twice = next(one for one, times in Counter(ids).items() if times > 1)
            raise ValueError(f"{twice!r} is more than once in {name!r}; give every item once")
    names = list(sets)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            both = sets[first] & sets[second]
            if both:
                shown = ", ".join(sorted(map(repr, both))[:5])
                raise ValueError(
                    f"{len(both)} item(s) are in both {first!r} and {second!r}: {shown}; split by "
                    "id, so that all forms of an item fall into one split"
                )


def _equal_weights(directions: Sequence[Direction]) -> Direction:
    if len(directions) == 1:
        return directions[0]
    return Direction(
        torch.stack([one.vector for one in directions]).mean(dim=0),
        torch.stack([one.centre for one in directions]).mean(dim=0),
        sum(one.n_towards for one in directions),
        sum(one.n_from for one in directions),
        directions[0].origin,
    )


def _origin(statistics: Statistics, site: Site) -> Origin | None:
    if statistics.model is None:
        return None
    position = _position(statistics.at)
    return Origin(statistics.model, *site, position=position, edits=statistics.edits)


def _position(at: Rule) -> str:
    return at if isinstance(at, str) else ",".join(map(str, at))
