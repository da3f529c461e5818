"""The benchmark's two sides compute the same grid."""

import warnings

import pytest

from benchmarks.patching import measure


def test_both_sides_agree() -> None:
    pytest.importorskip("transformer_lens")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = measure(1, layers=3, hidden=64, positions=5)
    assert found["max_difference"] < 1e-5
    assert found["cells"] == 15
    assert len(found["runs"]) == 1 and found["speedup"] > 0
