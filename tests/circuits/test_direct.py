"""Results of direct attribution: intervals, rankings, differences, what is refused."""

import dataclasses
from typing import Any

import pytest
import torch

import regap_interp as ri
from analyses.circuits import DirectAttribution, direct_attribution
from analyses.circuits.nodes import Node
from model_adapters import Adapter
from tests.circuits.test_identities import some_direction


def made(of_nodes: torch.Tensor, **changes: Any) -> DirectAttribution:
    """A result with three parts."""
    nodes = (Node(-1, "embed", "text"), Node(0, "head", 1), Node(0, "mlp"))
    plain = dict(
        nodes=nodes,
        of_nodes=of_nodes,
        constant=torch.zeros(len(of_nodes)).double(),
        total=of_nodes.sum(dim=1),
        of_spans=None,
        name="coordinate",
        model="none",
    )
    return DirectAttribution(**{**plain, **changes})  # type: ignore[arg-type]


def test_intervals_hold_the_mean_and_shrink() -> None:
    torch.manual_seed(0)
    values = torch.randn(200, 3).double() + torch.tensor([0.0, 2.0, -3.0])
    few, many = (made(values[:n]).interval(resamples=400) for n in (20, 200))
    for band in (few, many):
        assert bool(((band.low < band.value) & (band.value < band.high)).all())
    assert bool((many.high - many.low < few.high - few.low).all())
    # Of a normal mean: 1.96 standard errors on each side.
    width = 2 * 1.96 * values.std(dim=0) / 200**0.5
    torch.testing.assert_close(many.high - many.low, width, rtol=0.15, atol=0)
    alone = made(values[:1]).interval()
    assert bool(alone.low.isnan().all()) and torch.equal(alone.value, values[0])


def test_tables_and_rankings() -> None:
    values = torch.tensor([[0.1, 2.0, -3.0], [0.3, 1.0, -5.0], [0.2, 0.0, -4.0]]).double()
    found = made(values)
    table = found.to_frame()
    assert list(table) == ["part", "layer", "kind", "read_at", "value", "low", "high"]
    assert table["part"].tolist() == ["text", "head 0.1", "mlp 0"]
    assert table["value"].tolist() == pytest.approx([0.2, 1.0, -4.0])
    assert bool((table["low"] <= table["value"]).all())
    assert found.ranking().names == ("mlp 0", "head 0.1", "text")
    heads = found.ranking(kinds=["head"])
    assert heads.names == ("head 0.1",) and float(heads.sizes.value[0]) == 1
    assert len(heads.plot().axes) == 1
    with pytest.raises(ValueError, match="nothing to rank"):
        found.ranking(kinds=["attn"])


def test_differences_are_paired() -> None:
    torch.manual_seed(1)
    base = torch.randn(30, 3).double() * 10
    moved = made(base + torch.tensor([0.0, 1.0, 0.0])).minus(made(base))
    assert moved.difference and "difference" in repr(moved)
    # The rows differ wildly, their differences do not.
    band = moved.interval()
    torch.testing.assert_close(band.low, torch.tensor([0.0, 1.0, 0.0]).double())
    torch.testing.assert_close(band.high, band.low)
    assert moved._repr_mimebundle_().keys() == {"text/plain", "text/html", "image/png"}
    assert moved.view()._columns()["part"][0] == "head 0.1"
    with pytest.raises(ValueError, match="same coordinate of the same requests"):
        made(base).minus(made(base[:4]))
    with pytest.raises(ValueError, match="two directions"):
        made(base, direction="a").minus(made(base, direction="b"))
    other = dataclasses.replace(
        made(base), nodes=(*moved.nodes[:2], Node(3, "added")), of_nodes=base
    )
    both = other.minus(made(base))
    assert [str(node) for node in both.nodes] == ["text", "head 0.1", "mlp 0", "added 3"]
    torch.testing.assert_close(both.of_nodes[:, 2], -base[:, 2])
    torch.testing.assert_close(both.of_nodes[:, 3], base[:, 2])


def test_spans_in_differences_and_tables(random_organism: Adapter, pair_of: Any) -> None:
    one, other = pair_of()
    direction = some_direction(random_organism, 2)
    ours, theirs = (
        direct_attribution(random_organism, batch, direction, spans=True) for batch in (one, other)
    )
    change = ours.minus(theirs)
    assert ours.of_spans is not None and theirs.of_spans is not None
    assert change.of_spans is not None
    torch.testing.assert_close(
        change.of_spans, ours.of_spans - theirs.of_spans, equal_nan=True, atol=0, rtol=0
    )
    table = change.to_frame()
    heads = [node for node in change.nodes if node.kind == "head"]
    assert len(table) == len(change.nodes) + len(heads) * len(change.spans)
    whole = table[(table["part"] == "head 1.2") & (table["read_at"] == "all")]["value"]
    parts = table[(table["part"] == "head 1.2") & (table["read_at"] != "all")]["value"]
    assert float(parts.sum()) == pytest.approx(float(whole.iloc[0]), abs=1e-6)
    assert float(table["low"].isna().sum()) == 0


def test_refusals(random_organism: Adapter, pair_of: Any) -> None:
    direction = some_direction(random_organism, 2)
    graph = ri.Graph(ri.add("resid_post", 0, direction))
    with pytest.raises(ValueError, match="ask with spans=False"):
        direct_attribution(random_organism, pair_of()[0], direction, spans=True, graph=graph)
