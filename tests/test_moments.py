"""Streaming moments against two passes in float64, and their parts against the whole."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from regap_interp.moments import Covariance, Moments


def items(n: int = 60, width: int = 6, seed: int = 0) -> Tensor:
    """Correlated, and far from zero, where sums of squares would lose their digits."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(n, width, generator=generator, dtype=torch.float64) @ mix + 1e4


def streamed(states: Tensor, *cuts: int, covariance: Covariance = "full") -> Moments:
    made = Moments(states.shape[1], covariance=covariance)
    for part in states.tensor_split(cuts):
        made.add(part)
    return made


def assert_same(found: Moments, expected: Moments, tolerance: float = 1e-12) -> None:
    assert found.count == expected.count
    other = expected.tensors()
    for name, value in found.tensors().items():
        assert (value - other[name]).norm() <= tolerance * other[name].norm(), name


@pytest.mark.parametrize("cuts", [(), (1, 2, 3), (7, 50), tuple(range(1, 60))])
def test_one_pass_gives_what_two_passes_give(cuts: tuple[int, ...]) -> None:
    states = items()
    found = streamed(states, *cuts)
    centred = states - states.mean(dim=0)
    assert found.count == 60
    torch.testing.assert_close(found.mean, states.mean(dim=0), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.scatter, centred.T @ centred, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(found.variance, states.var(dim=0), rtol=1e-10, atol=0)


def test_merging_parts_is_one_pass_in_whatever_order() -> None:
    states = items()
    a, b, c = (streamed(part) for part in states.tensor_split((11, 40)))
    whole = streamed(states)
    assert_same(a.merge(b).merge(c), whole)
    assert_same(a.merge(b.merge(c)), whole)
    assert_same(c.merge(a).merge(b), whole)
    assert a.count == 11  # the parts stay as they were


def test_merging_with_nothing_changes_nothing() -> None:
    some, nothing = streamed(items()), Moments(6, covariance="full")
    for merged in (some.merge(nothing), nothing.merge(some)):
        assert_same(merged, some, tolerance=0)


def test_a_sketch_is_exact_while_the_items_span_no_more_than_its_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    states = 5 + torch.randn(200, 3, generator=generator, dtype=torch.float64) @ plane
    full = streamed(states, 20, 90)
    parts = [
        streamed(part, *range(10, 100, 10), covariance=4) for part in states.tensor_split((100,))
    ]
    sketch = parts[0].merge(parts[1])
    assert sketch.rows is not None and len(sketch.rows) <= 8
    torch.testing.assert_close(sketch.rows.T @ sketch.rows, full.scatter, rtol=1e-9, atol=1e-9)
    assert sketch.discarded == pytest.approx(0, abs=1e-12)


def test_a_sketch_keeps_the_strongest_components_and_says_what_it_lost() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([30.0, 10.0, 5.0] + [0.5] * 29, dtype=torch.float64)
    states = torch.randn(400, 32, generator=generator, dtype=torch.float64) * scale
    sketch = streamed(states, *range(20, 400, 20), covariance=8)
    full = streamed(states)
    assert sketch.rows is not None and full.scatter is not None
    left = full.scatter - sketch.rows.T @ sketch.rows
    assert 0 < sketch.discarded < 0.01
    assert left.trace() / full.scatter.trace() == pytest.approx(sketch.discarded)
    assert torch.linalg.eigvalsh(left).min() > -1e-9 * full.scatter.trace()
    torch.testing.assert_close(sketch.squares, full.squares)  # exact all the same
    top, kept = (torch.linalg.eigvalsh(m)[-3:] for m in (full.scatter, full.scatter - left))
    torch.testing.assert_close(kept, top, rtol=1e-3, atol=0)


def test_memory_does_not_grow_with_the_items() -> None:
    def size(n: int) -> int:
        sketch = streamed(items(n), *range(7, n, 7), covariance=2)
        return sum(value.numel() for value in sketch.tensors().values())

    assert size(700) <= size(70) <= (2 + 4) * 6


def test_variance_is_missing_below_two_items() -> None:
    assert Moments(3).variance.isnan().all()
    assert streamed(items(1)).variance.isnan().all()


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Moments(0), "width is 0"),
        (lambda: Moments(3, covariance=0), "covariance is 0"),
        (lambda: Moments(3).add(items()), "width 6, the statistics 3"),
        (lambda: Moments(6).add(items() / 0), "not finite in rows 0, 1"),
        (lambda: Moments(6).add(items()[0]), r"expected \[item, d_model\]"),
        (lambda: Moments(6).merge(Moments(5)), "width 6 with covariance None cannot be merged"),
        (lambda: Moments(6).merge(Moments(6, covariance=3)), "and 3; measure both"),
    ],
)
def test_refusals_say_what_was_given(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
