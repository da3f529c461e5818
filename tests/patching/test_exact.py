"""Sweeps give what one whole pass for every cell gives."""

from typing import Any

import pytest
import torch

from analyses.patching import LogitDifference, patch_sweep, windows
from model_adapters import Adapter
from tests.patching.reference import patched_logits, states

METRIC = LogitDifference(right=7, wrong=20)
TOLERANCE = 1e-5
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")


def expected(
    adapter: Adapter, base: Any, source: Any, site: str, layers: tuple[int, ...], **cell: Any
) -> float:
    """Of one row of a batch of one."""
    kept = states(adapter.module, source.inputs, site, layers)
    logits = patched_logits(adapter.module, base.inputs, kept, site=site, layers=layers, **cell)
    return float(logits[7] - logits[20])


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", ["text", "image", "audio"])
def test_a_grid_equals_plain_hooks(adapter: Adapter, pair_of: Any, kind: str, site: str) -> None:
    corrupted, clean = pair_of(kind)
    result = patch_sweep(adapter, corrupted, clean, site=site, metric=METRIC, positions="each")
    width = corrupted.roles.shape[1]
    assert result.raw.shape == (1, adapter.n_layers, width)
    assert result.complete and result.passes["whole"] == 0 and not result.notes
    for layer in range(adapter.n_layers):
        for at in range(0, width, 2):
            wanted = expected(
                adapter, corrupted, clean, site, (layer,), row=0, into=[at], taken=[[at]]
            )
            assert float(result.raw[0, layer, at]) == pytest.approx(wanted, abs=TOLERANCE)


def test_rows_of_every_medium_and_length_at_once(adapter: Adapter, mixed: Any) -> None:
    corrupted, clean = mixed
    result = patch_sweep(
        adapter, corrupted, clean, site="resid_pre", metric=METRIC, positions=range(-4, 0)
    )
    kept = states(adapter.module, clean.inputs, "resid_pre", range(adapter.n_layers))
    width = corrupted.roles.shape[1]
    for row in range(len(corrupted)):
        for layer in range(adapter.n_layers):
            for at in range(-4, 0):
                logits = patched_logits(
                    adapter.module,
                    corrupted.inputs,
                    kept,
                    site="resid_pre",
                    layers=[layer],
                    row=row,
                    into=[width + at],
                    taken=[[width + at]],
                )
                got = float(result.raw[row, layer, at + 4])
                assert got == pytest.approx(float(logits[7] - logits[20]), abs=TOLERANCE)


def test_heads_one_by_one(adapter: Adapter, pair_of: Any) -> None:
    corrupted, clean = pair_of("image")
    cells = dict(metric=METRIC, positions=["image", "last"], heads="each")
    result = patch_sweep(adapter, corrupted, clean, site="z", **cells)
    assert [axis.name for axis in result.axes] == ["layer", "position", "head"]
    image = list(corrupted.images[0][0].positions)
    for layer in (0, 3):
        for number, into in enumerate([image, [corrupted.roles.shape[1] - 1]]):
            for head in range(adapter.n_heads):
                wanted = expected(
                    adapter,
                    corrupted,
                    clean,
                    "z",
                    (layer,),
                    row=0,
                    into=into,
                    taken=[[one] for one in into],
                    head=slice(head * adapter.d_head, (head + 1) * adapter.d_head),
                )
                got = float(result.raw[0, layer, number, head])
                assert got == pytest.approx(wanted, abs=TOLERANCE)
    of_results = patch_sweep(adapter, corrupted, clean, site="result", **cells)
    torch.testing.assert_close(of_results.raw, result.raw)


def test_windows_of_layers_and_spans(adapter: Adapter, pair_of: Any) -> None:
    corrupted, clean = pair_of("audio")
    chosen = windows(range(adapter.n_layers), 2)
    result = patch_sweep(
        adapter,
        corrupted,
        clean,
        site="mlp_out",
        metric=METRIC,
        layers=chosen,
        positions=["audio", range(1, 4)],
    )
    assert result.axes[0].labels == ("0-1", "1-2", "2-3")
    spans = [list(corrupted.audios[0][0].positions), [1, 2, 3]]
    for number, layers in enumerate(chosen):
        for position, into in enumerate(spans):
            wanted = expected(
                adapter,
                corrupted,
                clean,
                "mlp_out",
                layers,
                row=0,
                into=into,
                taken=[[one] for one in into],
            )
            assert float(result.raw[0, number, position]) == pytest.approx(wanted, abs=TOLERANCE)


def test_noise_goes_the_other_way(adapter: Adapter, pair_of: Any) -> None:
    corrupted, clean = pair_of("text")
    cells: Any = dict(site="resid_post", metric=METRIC, positions=[-1, -3], layers=[0, 2])
    noise = patch_sweep(adapter, corrupted, clean, mode="noise", **cells)
    swapped = patch_sweep(adapter, clean, corrupted, mode="denoise", **cells)
    torch.testing.assert_close(noise.raw, swapped.raw)
    torch.testing.assert_close(noise.values, 1 - swapped.values)
    assert torch.equal(noise.base, noise.clean)


def test_batches_of_cells_equal_single_cells(adapter: Adapter, pair_of: Any) -> None:
    corrupted, clean = pair_of("image")
    grid = patch_sweep(
        adapter, corrupted, clean, site="resid_mid", metric=METRIC, positions=[0, 3, -1]
    )
    for layer in range(adapter.n_layers):
        for number, at in enumerate([0, 3, -1]):
            one = patch_sweep(
                adapter,
                corrupted,
                clean,
                site="resid_mid",
                metric=METRIC,
                layers=[layer],
                positions=[at],
            )
            assert float(one.raw) == pytest.approx(float(grid.raw[0, layer, number]), abs=1e-6)


def test_little_memory_gives_the_same(adapter: Adapter, pair_of: Any) -> None:
    corrupted, clean = pair_of("image")
    cells: Any = dict(site="resid_pre", metric=METRIC, positions="each")
    calls: list[tuple[int, int]] = []
    large = patch_sweep(adapter, corrupted, clean, **cells)
    small = patch_sweep(
        adapter,
        corrupted,
        clean,
        **cells,
        memory=250_000,
        progress=lambda done, total: calls.append((done, total)),
    )
    torch.testing.assert_close(small.raw, large.raw)
    assert calls[-1] == (small.raw.numel(), small.raw.numel())
    assert len(calls) > 5
    with pytest.raises(ValueError, match="one patched run needs about"):
        patch_sweep(adapter, corrupted, clean, **cells, memory=10_000)


def test_cells_run_neither_earlier_layers_nor_earlier_positions(
    adapter: Adapter, pair_of: Any
) -> None:
    corrupted, clean = pair_of("image")
    width = corrupted.roles.shape[1]
    seen: dict[int, list[int]] = {0: [], 3: []}

    def sweep(positions: Any) -> tuple[int, list[int]]:
        for calls in seen.values():
            calls.clear()
        patch_sweep(
            adapter,
            corrupted,
            clean,
            site="resid_pre",
            metric=METRIC,
            layers=[3],
            positions=positions,
        )
        return len(seen[0]), list(seen[3])

    handles = [
        adapter.resid_post.site(layer).envoy._module.register_forward_hook(
            lambda _, args, output, layer=layer: seen[layer].append(args[0].shape[1])
        )
        for layer in seen
    ]
    try:
        one, _ = sweep([-1])
        many, widths = sweep(range(-5, 0))
    finally:
        for handle in handles:
            handle.remove()
    assert one == many  # the two runs themselves, and what is tried once
    assert widths[-1] <= 5 < width
