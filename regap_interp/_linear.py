"""Projections off the span of a few vectors, exact to float64 rounding."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp import _checks

# Of the original length; less is rounding of the subtraction, not a direction.
_NOTHING_LEFT = 1e-9


def remove_span(
    vector: Float[Tensor, "d_model"], others: Sequence[Float[Tensor, "d_model"]]
) -> Float[Tensor, "d_model"]:
    """The part of `vector` orthogonal to every one of `others`, float64.

    Raises:
        ValueError: Widths differ, one of `others` is zero or not finite, or nothing is left.
    """
    exact = vector.detach().to("cpu", torch.float64)
    basis = orthonormal_basis(others, like=exact)
    left = exact
    for _ in range(2):  # the second pass removes what rounding left of the first
        left = left - basis.T @ (basis @ left)
    if left.norm() <= _NOTHING_LEFT * exact.norm():
        raise ValueError(
            "nothing is left of the vector: it lies in the span of what it is to be orthogonal to"
        )
    return left


def orthonormal_basis(
    vectors: Sequence[Float[Tensor, "d_model"]], like: Float[Tensor, "d_model"]
) -> Float[Tensor, "rank d_model"]:
    """Orthonormal rows that span `vectors`; dependent ones add no row."""
    if not vectors:
        return like.new_zeros(0, len(like))
    rows = []
    for index, vector in enumerate(vectors):
        _checks.same_width(f"vector {index}", vector, "the others", like)
        exact = vector.detach().to("cpu", torch.float64)
        if not exact.isfinite().all() or not exact.any():
            raise ValueError(f"vector {index} to be orthogonal to is zero or not finite")
        rows.append(exact / exact.norm())
    _, sizes, basis = torch.linalg.svd(torch.stack(rows), full_matrices=False)
    return basis[sizes > _NOTHING_LEFT * sizes[0]]
