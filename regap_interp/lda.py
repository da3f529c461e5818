"""The direction that tells two classes apart best when their spread is not the same everywhere."""

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp import _checks
from regap_interp.directions import Direction, Origin, count_and_mean
from regap_interp.moments import Moments


def lda_direction(
    towards: Float[Tensor, "towards d_model"] | Moments,
    start: Float[Tensor, "start d_model"] | Moments,
    *,
    shrinkage: float | None = None,
    origin: Origin | None = None,
) -> Direction:
    """Linear discriminant: difference of means, whitened by the spread within the classes.

    The covariance S within the classes (divided by the number of items) is shrunk to
    `(1 - shrinkage) * S + shrinkage * mean variance * identity`. Part of S that a sketch has
    dropped is taken to lie in all coordinates alike. The vector has the length at which the mean
    of `towards` has the coordinate `norm`, as for a difference of means.

    Args:
        towards: States of the class pointed to, at least 2, or moments with a covariance.
        start: States of the other class, in the same form.
        shrinkage: Above 0, up to 1 (which gives the difference of means). None chooses it as
            Ledoit and Wolf (2004) do, which takes the states themselves.
        origin: Where the states were taken.

    Raises:
        ValueError: Too few items, different widths, states that are not finite or do not vary,
            moments without covariance or without a given `shrinkage`, or equal means.

    >>> import torch
    >>> from regap_interp import lda_direction
    >>> spread = torch.tensor([[0.0, 9.0], [0.0, -9.0], [1.0, 0.0], [-1.0, 0.0]])
    >>> found = lda_direction(spread + torch.tensor([4.0, 4.0]), spread, shrinkage=0.01)
    >>> found.unit[0] > 0.99  # the second coordinate differs as much, but is noise
    tensor(True)
    """
    if shrinkage is not None and not 0 < shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage}; it lies above 0 and is at most 1")
    n, mean = count_and_mean("towards", towards)
    m, centre = count_and_mean("start", start)
    _checks.same_width("towards", mean, "start", centre)
    gap = mean - centre
    if isinstance(towards, Moments) and isinstance(start, Moments):
        whitened = _whitened_by_moments(towards, start, shrinkage, gap)
    elif isinstance(towards, Moments) or isinstance(start, Moments):
        raise ValueError("one class is given as states, the other as moments; give both alike")
    else:
        pairs = ((towards, mean), (start, centre))
        rows = torch.cat([states.detach().to(gap) - at for states, at in pairs])
        chosen = ledoit_wolf(rows) if shrinkage is None else shrinkage
        whitened = _whitened(rows, float((rows**2).sum()), len(rows), chosen, gap)
    unit = whitened / whitened.norm()
    return Direction(unit * (unit @ gap), centre, n, m, origin)


def ledoit_wolf(centred: Float[Tensor, "item d_model"]) -> float:
    """Shrinkage of the covariance of centred items with the least expected squared error, 0 to 1.

    Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices" (2004), equations for their a, b, d and m.

    Raises:
        ValueError: Items that do not vary.
    """
    n, width = centred.shape
    gram = centred @ centred.T
    scale = float(gram.trace()) / (n * width)
    if scale == 0:
        raise ValueError("the items of a class are all the same; there is no spread to whiten by")
    squared = float((gram**2).sum()) / n**2
    distance = squared / width - scale**2
    error = (float((gram.diagonal() ** 2).sum()) / n - squared) / (n * width)
    return min(error, distance) / distance if distance > 0 else 1.0


def _whitened_by_moments(
    towards: Moments, start: Moments, shrinkage: float | None, gap: Tensor
) -> Tensor:
    if shrinkage is None:
        raise ValueError(
            "moments do not hold what the Ledoit-Wolf shrinkage is computed from; give shrinkage, "
            "0.1 say, or the states"
        )
    count, spread = towards.count + start.count, float((towards.squares + start.squares).sum())
    if towards.rows is not None and start.rows is not None:
        return _whitened(torch.cat([towards.rows, start.rows]), spread, count, shrinkage, gap)
    if towards.scatter is None or start.scatter is None:
        raise ValueError(
            'the moments hold no covariance; stream them with covariance="full" or a rank'
        )
    _check_spread(spread)
    within = (1 - shrinkage) * (towards.scatter + start.scatter) / count
    within.diagonal().add_(shrinkage * spread / (count * len(gap)))
    return torch.linalg.solve(within, gap)


def _whitened(
    rows: Float[Tensor, "row d_model"], spread: float, count: int, shrinkage: float, gap: Tensor
) -> Float[Tensor, "d_model"]:
    """`gap` times the inverse of the shrunk `rows.T @ rows / count`, by Woodbury's identity."""
    _check_spread(spread)
    lost = max(0.0, spread - float((rows**2).sum()))
    ridge = (shrinkage * spread + (1 - shrinkage) * lost) / (count * len(gap))
    rows = rows * ((1 - shrinkage) / count) ** 0.5
    inner = rows @ rows.T
    inner.diagonal().add_(ridge)
    return (gap - rows.T @ torch.linalg.solve(inner, rows @ gap)) / ridge


def _check_spread(spread: float) -> None:
    if spread == 0:
        raise ValueError("the items of a class are all the same; there is no spread to whiten by")
