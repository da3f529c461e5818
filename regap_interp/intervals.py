"""Rates with the intervals they are reported with."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regap_interp import _checks


@dataclass(frozen=True)
class Rate:
    """A proportion or mean with its interval."""

    value: float
    """The estimate, from all items."""
    n: int
    """Items it was made from."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Rate:
    """Share `successes / n` with Wilson's score interval, which holds near 0 and 1 too.

    It takes the items for independent; see `cluster_bootstrap` for items that share pairs.
    `confidence` is the coverage.

    Raises:
        ValueError: `n` is not positive, or `successes` is not within 0 and `n`.

    >>> from regap_interp import wilson
    >>> rate = wilson(9, 10)
    >>> round(rate.low, 2), rate.value, round(rate.high, 2)
    (0.6, 0.9, 0.98)
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"{successes} successes of {n} items is no rate; expected 0 <= k <= n, n >= 1"
        )
    z = NormalDist().inv_cdf(_upper(confidence))
    share = successes / n
    shrink = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / shrink
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5 / shrink
    # The ends are exact at 0 and n successes; rounding would leave them at 1e-17.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return Rate(share, n, low, high)


def cluster_bootstrap(
    outcomes: Bool[Tensor, "item"] | Float[Tensor, "item"],
    clusters: Sequence[Hashable],
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Rate:
    """Mean outcome with a percentile interval that resamples whole clusters.

    Items of one cluster (renderings of the same verb and object, say) succeed or fail
    together, so they count as one draw. Where all booleans are equal every resample is too, and
    says nothing: the interval is Wilson's, with a cluster for an item.

    Args:
        outcomes: One outcome for each item; booleans give a rate.
        clusters: The cluster each item belongs to.
        resamples: Bootstrap draws of as many clusters as there are.
        seed: The same seed gives the same interval.
        confidence: Coverage of the interval.

    Raises:
        ValueError: Fewer than 2 clusters, or as many labels as items are not given.

    >>> import torch
    >>> from regap_interp import cluster_bootstrap
    >>> answered = torch.tensor([True, True, False, False])
    >>> alone = cluster_bootstrap(answered, ["a", "b", "c", "d"], seed=0)
    >>> together = cluster_bootstrap(answered, ["a", "a", "b", "b"], seed=0)
    >>> alone.value, (together.low, together.high)  # two requests, rendered twice, tell little
    (0.5, (0.0, 1.0))
    """
    exact = _checks.samples("outcomes", outcomes)
    index = _cluster_index(clusters, len(exact))
    sizes = torch.bincount(index)
    sums = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, index, exact.cpu())
    draws = _draw(len(sizes), resamples, seed)
    # The sum over a resample is the sum over its clusters: no need to build the resample.
    means = sums[draws].sum(dim=1) / sizes[draws].sum(dim=1)
    low, high = percentile_interval(means, confidence)
    share = float(exact.mean())
    if outcomes.dtype == torch.bool and share in (0, 1):
        unanimous = wilson(int(share) * len(sizes), len(sizes), confidence=confidence)
        low, high = unanimous.low, unanimous.high
    return Rate(share, len(exact), low, high)


def resample_clusters(
    clusters: Sequence[Hashable], n: int, *, resamples: int, seed: int = 0
) -> Iterator[Int[Tensor, "drawn"]]:
    """Item indices of each bootstrap resample of whole clusters, for any statistic.

    Args:
        clusters: The cluster of each of the `n` items.
        n: Items.
        resamples: Bootstrap draws of as many clusters as there are.
        seed: The same seed gives the same draws.
    """
    index = _cluster_index(clusters, n)
    items, sizes = index.argsort(stable=True), torch.bincount(index)
    starts = sizes.cumsum(0) - sizes
    for draw in _draw(len(sizes), resamples, seed):
        drawn = sizes[draw]
        # Where in `items` each drawn cluster begins, and each item's place within its cluster.
        begin = starts[draw].repeat_interleave(drawn)
        place = torch.arange(len(begin)) - (drawn.cumsum(0) - drawn).repeat_interleave(drawn)
        yield items[begin + place]


def bootstrap(
    statistic: Callable[[Tensor], float],
    clusters: Sequence[Hashable],
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Rate:
    """Any statistic of item indices, with a percentile interval over resampled clusters.

    Resamples in which it cannot be measured (NaN) are left out; NaN ends where none can.

    Args:
        statistic: Takes indices of items, which may recur.
        clusters: The cluster of every item; as many items as labels.
        resamples: Bootstrap draws of as many clusters as there are.
        seed: The same seed gives the same interval.
        confidence: Coverage of the interval.

    Raises:
        ValueError: Fewer than 2 clusters.
    """
    n = len(clusters)
    drawn = resample_clusters(clusters, n, resamples=resamples, seed=seed)
    draws = torch.tensor([statistic(one) for one in drawn], dtype=torch.float64)
    low, high = interval_of_measured(draws, confidence)
    return Rate(statistic(torch.arange(n)), n, low, high)


def resample_weights(
    clusters: Sequence[Hashable], *, resamples: int, seed: int = 0
) -> Float[Tensor, "resample item"]:
    """How often each item is drawn in each bootstrap resample of whole clusters, float64.

    The same draws as `resample_clusters`; sums over a resample are products with these.
    """
    index = _cluster_index(clusters, len(clusters))
    draws = _draw(int(index.max()) + 1, resamples, seed)
    counts = torch.zeros(draws.shape, dtype=torch.float64)
    counts.scatter_add_(1, draws, torch.ones(draws.shape, dtype=torch.float64))
    return counts[:, index]


def interval_of_measured(
    draws: Float[Tensor, "resample"], confidence: float = 0.95
) -> tuple[float, float]:
    """`percentile_interval` of the draws that are not NaN; NaN ends where there are none."""
    measured = draws[~draws.isnan()]
    return percentile_interval(measured, confidence) if len(measured) else (math.nan, math.nan)


def percentile_interval(
    draws: Float[Tensor, "resample"], confidence: float = 0.95
) -> tuple[float, float]:
    """The two ends that leave `(1 - confidence) / 2` of the bootstrap draws outside each."""
    upper = _upper(confidence)
    ends = torch.tensor([1 - upper, upper], dtype=draws.dtype)
    low, high = torch.quantile(draws, ends).tolist()
    return low, high


def _upper(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(
            f"confidence is {confidence}; expected a share between 0 and 1, such as 0.95"
        )
    return (1 + confidence) / 2


def _draw(clusters: int, resamples: int, seed: int) -> Int[Tensor, "resample cluster"]:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; a bootstrap needs at least 1, better 1000")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(clusters, (resamples, clusters), generator=generator)


def _cluster_index(clusters: Sequence[Hashable], n: int) -> Tensor:
    if len(clusters) != n:
        raise ValueError(f"{len(clusters)} cluster labels for {n} outcomes; give each item one")
    number = {label: position for position, label in enumerate(dict.fromkeys(clusters))}
    if len(number) < 2:
        raise ValueError(f"{len(number)} cluster(s); resampling clusters needs at least 2")
    return torch.tensor([number[label] for label in clusters])
