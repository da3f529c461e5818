"""What must hold of any patching, whatever the model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from analyses.patching import (
    Coordinate,
    Divergence,
    FromLogits,
    LogitDifference,
    LogOdds,
    PerItem,
    patch_sweep,
    remember,
)
from analyses.patching.budget import Budget
from analyses.patching.recorded import Reader
from model_adapters import Adapter
from regap_interp import Direction, Origin

METRIC = LogitDifference(right=7, wrong=20)


@pytest.mark.parametrize("site", ["embed", "resid_pre", "resid_mid", "resid_post"])
def test_everything_from_clean_is_clean(adapter: Adapter, mixed: Any, site: str) -> None:
    corrupted, clean = mixed
    result = patch_sweep(adapter, corrupted, clean, site=site, metric=METRIC, positions=["prompt"])
    assert not torch.allclose(result.corrupted, result.clean)
    for layer in range(result.raw.shape[1]):
        torch.testing.assert_close(result.raw[:, layer, 0], result.clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.values, torch.ones_like(result.values), atol=1e-5, rtol=0)


def test_nothing_from_clean_is_corrupted(adapter: Adapter, mixed: Any) -> None:
    corrupted, _ = mixed
    result = patch_sweep(
        adapter, corrupted, corrupted, site="z", metric=METRIC, positions=range(-3, 0), heads="each"
    )
    assert torch.equal(result.raw, result.corrupted[:, None, None, None].expand_as(result.raw))
    assert set(result.passes) == {"resumed", "whole", "unchanged"}
    assert result.passes["unchanged"] == result.raw.numel()
    assert result.values.isnan().all()


def test_last_position_of_the_last_layer_is_everything(adapter: Adapter, mixed: Any) -> None:
    result = patch_sweep(adapter, *mixed, site="resid_post", metric=METRIC, layers=[-1])
    torch.testing.assert_close(result.raw[:, 0, 0], result.clean, atol=1e-5, rtol=1e-5)


def test_all_heads_together_are_their_layer(adapter: Adapter, pair_of: Any) -> None:
    cells: Any = dict(metric=METRIC, positions=["prompt", "last"])
    heads = patch_sweep(adapter, *pair_of("image"), site="result", **cells)
    layer = patch_sweep(adapter, *pair_of("image"), site="attn_out", **cells)
    torch.testing.assert_close(heads.raw, layer.raw, atol=1e-5, rtol=1e-5)


def coordinate(adapter: Adapter, site: str, layer: int) -> Coordinate:
    vector = torch.linspace(-1, 2, adapter.d_model, dtype=torch.float64)
    origin = Origin(adapter.fingerprint, site, layer)
    return Coordinate(Direction(vector, 0 * vector, 8, 8, origin))


def test_coordinates_are_read_where_they_were_measured(adapter: Adapter, pair_of: Any) -> None:
    metric = coordinate(adapter, "resid_post", 2)
    result = patch_sweep(
        adapter, *pair_of("image"), site="attn_out", metric=metric, positions=["last", 1]
    )
    # Later layers and other positions of the same layer do not reach it.
    assert result.raw[0, 3].tolist() == [float(result.base[0])] * 2
    assert float(result.change[0, 2, 1]) == pytest.approx(0, abs=1e-7)
    mlp = patch_sweep(adapter, *pair_of("image"), site="mlp_out", metric=metric, layers=[2])
    kept = [remember(adapter, b, site="mlp_out", metric=metric) for b in pair_of("image")]
    base, source = (one.recorded.site[2][0, -1].double() for one in kept)
    moved = (source - base) @ metric.direction.unit / metric.direction.norm
    assert float(mlp.change) == pytest.approx(float(moved), abs=1e-6)


def test_metrics(adapter: Adapter, mixed: Any) -> None:
    corrupted, clean = mixed
    with torch.no_grad():
        ours, theirs = (
            adapter.module(**one.inputs).logits[:, -1].double() for one in (corrupted, clean)
        )
    chance = ours.softmax(-1)
    some = chance[:, [3, 5]].sum(-1)
    expected: list[tuple[Any, Tensor]] = [
        (LogitDifference((1, 2, 3, 4), 9), ours[range(4), [1, 2, 3, 4]] - ours[:, 9]),
        (LogOdds((3, 5)), (some / (1 - some)).log()),
        (LogOdds((3, 5), (8,)), (some / chance[:, 8]).log()),
        (Divergence(), (theirs.softmax(-1) * (theirs.softmax(-1) / chance).log()).sum(-1)),
        (FromLogits(lambda logits: logits.amax(-1)), ours.amax(-1)),
    ]
    for metric, wanted in expected:
        result = patch_sweep(adapter, corrupted, clean, site="resid_post", metric=metric)
        torch.testing.assert_close(result.corrupted, wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(result.raw[:, -1, 0], result.clean, atol=1e-5, rtol=1e-4)
        assert metric.named(adapter.tokenizer.decode) in repr(result)


def test_a_remembered_clean_run_gives_the_same(adapter: Adapter, mixed: Any) -> None:
    corrupted, clean = mixed
    kept = remember(adapter, clean, site="result", metric=METRIC)
    cells: Any = dict(site="result", metric=LogOdds((3, 4)), heads=[0, 2])
    torch.testing.assert_close(
        patch_sweep(adapter, corrupted, kept, **cells).raw,
        patch_sweep(adapter, corrupted, clean, **cells).raw,
    )
    with pytest.raises(ValueError, match="was remembered at z"):
        patch_sweep(adapter, corrupted, kept, site="resid_pre", metric=METRIC)
    with pytest.raises(ValueError, match="give its batch instead"):
        patch_sweep(adapter, corrupted, kept, mode="noise", **cells)


def test_padding_on_either_side_gives_the_same(adapter: Adapter) -> None:
    from tests.patching.conftest import CHATS

    chats = [[make(side) for make in CHATS.values()] for side in (0, 1)]
    left, right = (
        patch_sweep(
            adapter,
            *(adapter.encode(one, padding_side=side) for one in chats),
            site="resid_pre",
            metric=METRIC,
            positions=range(-4, 0),
        )
        for side in ("left", "right")
    )
    torch.testing.assert_close(left.raw, right.raw, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"site": "logits"}, "site is 'logits'"),
        ({"site": "embed", "layers": [0]}, "embed belongs to no layer"),
        ({"heads": "each"}, "resid_pre has no heads"),
        ({"site": "z", "heads": [9]}, "give some of 0 to 3"),
        ({"layers": []}, "give different layers"),
        ({"layers": [1, 1]}, "give different layers"),
        ({"positions": []}, "positions is empty"),
        ({"positions": "each"}, "needs prompts of one length"),
        ({"mode": "both"}, "mode is 'both'"),
        ({"metric": lambda logits: 1.0}, "gave float for logits"),
        ({"metric": LogOdds((1,), (2,)), "memory": 10}, "memory is 1 MB"),
    ],
)
def test_refusals(
    adapter: Adapter, mixed: Any, change: Any, message: str, as_users_run_it: None
) -> None:
    with pytest.raises(ValueError, match=message):
        patch_sweep(adapter, *mixed, **{"site": "resid_pre", "metric": METRIC, **change})


def test_a_direction_of_another_model_is_refused(adapter: Adapter, mixed: Any) -> None:
    vector = torch.ones(adapter.d_model)
    metric = Coordinate(Direction(vector, vector, 2, 2, Origin("0" * 64, "resid_post", 1)))
    with pytest.raises(ValueError, match="measured on another model"):
        patch_sweep(adapter, *mixed, site="resid_pre", metric=metric)
    bare = Coordinate(Direction(vector, vector, 2, 2))
    with pytest.raises(ValueError, match="does not say at which layer"):
        patch_sweep(adapter, *mixed, site="resid_pre", metric=bare)


def test_metrics_are_named_by_tokens_where_those_are_known(adapter: Adapter, mixed: Any) -> None:
    found = patch_sweep(adapter, *mixed, site="embed", metric=LogOdds((7, 8), (20,)))
    words = [adapter.tokenizer.decode([token]) for token in (7, 8, 20)]
    assert found.metric == "log-odds {}/{} against {}".format(*words)
    assert LogOdds((7, 8)).name == "log-odds 7/8 against the rest"


def test_positions_carry_the_token_that_all_items_share(adapter: Adapter, mixed: Any) -> None:
    found = patch_sweep(
        adapter, *mixed, site="embed", metric=METRIC, positions=["last", -2, (-2, -1)]
    )
    assert found.axes[1].tokens == ("w99", "", "")
    assert found.axes[1].names() == ["last:w99", "-2", "-2+-1"]
    assert found.axes[0].tokens == ()


def test_positions_of_the_same_name_stay_apart(adapter: Adapter, mixed: Any) -> None:
    chosen = [PerItem((-1, -1, -1, -1)), PerItem((-2, -1, -2, -1))]
    cells: Any = dict(site="resid_post", layers=[0], metric=METRIC, positions=chosen)
    found = patch_sweep(adapter, *mixed, **cells)
    assert found.axes[1].labels == ("per item", "per item #2")
    assert torch.equal(found.at(position="per item #2").raw, found.raw[:, :, 1])
    assert not torch.equal(found.raw[:, :, 0], found.raw[:, :, 1])
    assert len(found.view().to_frame()) == 2


def test_what_is_kept_and_what_is_read_count_as_memory(adapter: Adapter) -> None:
    def rows(kept: int, metric: Any, width: int = 8) -> int:
        return Budget(10**6, kept, adapter, Reader(adapter, metric)).rows(width, 8)

    few = rows(0, METRIC)
    assert few // 2 - 1 <= rows(5 * 10**5, METRIC) <= few // 2 + 1
    assert rows(0, Divergence()) < few < rows(0, METRIC, width=2)
    with pytest.raises(ValueError, match="the recorded runs keep 1 MB"):
        rows(10**6 - 10, METRIC)
