"""Attribution by gradients: against autograd by hand, its sum rule, and real patches."""

from typing import Any

import pytest
import torch

import model_adapters
from analyses.patching import LogitDifference, agreement, attribution_sweep, patch_sweep, windows
from model_adapters import Adapter
from tests.adapters.conftest import SmallProcessor, build_thinker, user
from tests.patching.reference import plain_hook, states

METRIC = LogitDifference(right=7, wrong=20)


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "attn_out", "z"])
def test_gradient_times_difference_by_hand(adapter: Adapter, pair_of: Any, site: str) -> None:
    corrupted, clean = pair_of("image")
    result = attribution_sweep(
        adapter, corrupted, clean, site=site, metric=METRIC, positions="each"
    )
    layers = range(adapter.n_layers)
    ours = states(adapter.module, corrupted.inputs, site, layers)
    theirs = states(adapter.module, clean.inputs, site, layers)
    for layer in layers:
        leaf = torch.zeros_like(ours[layer], requires_grad=True)
        with plain_hook(adapter.module, site, layer, lambda value, leaf=leaf: value + leaf):
            logits = adapter.module(**corrupted.inputs, use_cache=False).logits[0, -1]
        (gradient,) = torch.autograd.grad(logits[7] - logits[20], leaf)
        wanted = (gradient * (theirs[layer] - ours[layer])).sum(-1)
        torch.testing.assert_close(
            result.change[0, layer], wanted[0].double(), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("site", ["embed", "resid_post", "mlp_out"])
def test_integrated_gradients_add_up_to_patching_all(
    adapter: Adapter, mixed: Any, site: str
) -> None:
    corrupted, clean = mixed
    layers = None if site == "embed" else [0, 2]
    cells: Any = dict(site=site, metric=METRIC, layers=layers)
    parts = attribution_sweep(adapter, corrupted, clean, positions=range(-4, 0), steps=24, **cells)
    together = patch_sweep(adapter, corrupted, clean, positions=[range(-4, 0)], **cells)
    assert parts.method == "integrated gradients"
    torch.testing.assert_close(
        parts.change.sum(dim=2), together.change[:, :, 0], atol=2e-3, rtol=2e-2
    )


def test_a_small_step_is_exact_to_first_order(adapter: Adapter, pair_of: Any) -> None:
    corrupted, clean = pair_of("text")
    cells: Any = dict(site="resid_post", metric=METRIC, positions="each")
    exact = patch_sweep(adapter, corrupted, clean, **cells)
    rough = attribution_sweep(adapter, corrupted, clean, check=20, **cells)
    fine = attribution_sweep(adapter, corrupted, clean, steps=8, check=20, **cells)
    assert rough.agreement is not None and fine.agreement is not None
    assert rough.agreement.n == fine.agreement.n == 20
    assert "Spearman" in repr(fine)
    whole = agreement(exact, fine)
    assert whole.n == exact.raw.numel()
    assert whole.spearman > 0.8
    assert agreement(exact, exact).spearman == pytest.approx(1)
    # The last layer is linear up to the final norm; there the path is nearly exact.
    last = exact.change[0, -1, -1]
    assert float(fine.change[0, -1, -1]) == pytest.approx(float(last), abs=2e-3)


def test_heads_add_up_to_their_layer(adapter: Adapter, pair_of: Any) -> None:
    corrupted, clean = pair_of("audio")
    cells: Any = dict(metric=METRIC, positions=["audio", "last"])
    heads = attribution_sweep(adapter, corrupted, clean, site="result", heads="each", **cells)
    layer = attribution_sweep(adapter, corrupted, clean, site="attn_out", **cells)
    torch.testing.assert_close(heads.change.sum(-1), layer.change, atol=1e-5, rtol=1e-4)


def test_windows_are_sums_and_paths_refuse_them(adapter: Adapter, pair_of: Any) -> None:
    corrupted, clean = pair_of("text")
    cells: Any = dict(site="mlp_out", metric=METRIC, positions=[-1])
    chosen = windows(range(adapter.n_layers), 2)
    single = attribution_sweep(adapter, corrupted, clean, **cells)
    pairs = attribution_sweep(adapter, corrupted, clean, layers=chosen, **cells)
    torch.testing.assert_close(pairs.change, single.change[:, :-1] + single.change[:, 1:])
    with pytest.raises(ValueError, match="not windows"):
        attribution_sweep(adapter, corrupted, clean, layers=chosen, steps=2, **cells)
    cells["positions"] = ["last", -1]
    with pytest.raises(ValueError, match="overlap"):
        attribution_sweep(adapter, corrupted, clean, steps=2, **cells)


def test_progress_counts_points_and_then_cells(adapter: Adapter, pair_of: Any) -> None:
    seen: list[tuple[int, int]] = []
    cells: Any = dict(site="mlp_out", metric=METRIC, layers=[1, 2])
    attribution_sweep(
        adapter,
        *pair_of("text"),
        **cells,
        steps=3,
        check=1,
        progress=lambda *count: seen.append(count),
    )
    points, patches = [c for c in seen if c[1] == 6], [c for c in seen if c[1] == 2]
    assert points[-1] == (6, 6) and patches[-1] == (2, 2) and seen == points + patches
    for name in ("steps", "check"):
        with pytest.raises(ValueError, match=f"{name} is -1; give 0 or more"):
            attribution_sweep(adapter, *pair_of("text"), **cells, **{name: -1})


def test_paths_in_low_precision_add_up() -> None:
    module = build_thinker().bfloat16()
    adapter = model_adapters.load(module, processor=SmallProcessor())
    runs = [adapter.encode([user(f"w{5 + side} w7 w8")]) for side in (0, 1)]
    cells: Any = dict(site="resid_post", layers=[adapter.n_layers - 1], metric=METRIC)
    parts = attribution_sweep(adapter, *runs, **cells, steps=16)
    real = patch_sweep(adapter, *runs, **cells)
    assert float(parts.change) == pytest.approx(float(real.change), rel=0.05, abs=0.01)
