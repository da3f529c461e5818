"""How two tensors are compared, and what is raised where no difference tells."""

from torch import Tensor


class CheckError(AssertionError):
    """A check found something that no difference tells."""


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value.

    Raises:
        CheckError: for tensors of different shapes, which broadcasting would hide, and for values
            that are not finite, which comparisons would pass over.
    """
    if got.shape != expected.shape:
        raise CheckError(f"shapes {tuple(got.shape)} and {tuple(expected.shape)} differ")
    got, expected = got.detach().double(), expected.detach().double()
    for name, tensor in (("what was read", got), ("the reference", expected)):
        if not bool(tensor.isfinite().all()):
            raise CheckError(f"{name} holds NaN or infinite values")
    if not expected.numel():
        raise CheckError("nothing was compared")
    largest = max(float(expected.abs().max()), 1e-30)
    return float((got - expected).abs().max()) / largest
