"""Activation patching over layers, positions and heads."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from analyses.patching.align import Policy
from analyses.patching.cells import Heads, Layers, Positions
from analyses.patching.measured import Mode
from analyses.patching.result import PatchResult
from analyses.patching.running import Progress, empty_result, run_cells
from analyses.patching.setup import MEMORY, Asked, CleanRun, Metrics, Setup, set_up
from model_adapters import Adapter, Batch
from model_adapters.tracer import lock_of


@torch.no_grad()
def patch_sweep(
    adapter: Adapter,
    corrupted: Batch,
    clean: Batch | CleanRun,
    *,
    site: str,
    metric: Metrics,
    layers: Layers | None = None,
    positions: Positions = ("last",),
    heads: Heads = None,
    mode: Mode = "denoise",
    align: Policy = "same",
    memory: int = MEMORY,
    seed: int = 0,
    progress: Progress | bool = False,
    checkpoint: str | Path | None = None,
    resume: PatchResult | None = None,
) -> PatchResult:
    """Put states of one run into another, cell by cell, and measure what comes out.

    Cells are run together, from the patched layer and, where the model's attention is causal, from
    the patched position on. What a model allows is tried on it; otherwise passes are whole.

    Args:
        adapter: the model. Graphs installed on it edit all runs.
        corrupted: the runs that lack the behaviour, one a row.
        clean: their counterparts that show it, row by row, or what `remember` kept of them.
        site: "embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z" or
            "result".
        metric: of the last prompt token: a `Metric`, or a function of its logits,
            `[row, d_vocab]` to `[row]`.
        layers: numbers, or windows of layers patched together (see `windows`); None for all.
        positions: indices, spans and names, or `Pair`s of them; "each" for every position.
        heads: of `z` and `result`; None patches all of them together, "each" one by one.
        mode: "denoise" puts clean states into corrupted runs, "noise" corrupted into clean.
        align: which positions of the two runs belong together; see `Policy`.
        memory: bytes that the sweep may use beside the model, by estimate.
        seed: of the result's resamples.
        progress: called after every batch of cells; True draws a bar on standard error.
        checkpoint: a .safetensors file that finished cells are written to as the sweep goes. If
            it is there, the sweep goes on from it.
        resume: finished cells of the same sweep.

    Raises:
        ValueError: for what cannot be patched, positions that cannot be aligned, or `memory` that
            is too little.
        SweepInterrupted: on Ctrl-C; it carries what is finished.
    """
    if checkpoint is not None:
        _check_file(Path(checkpoint))
    asked = Asked(site, layers, positions, heads, metric, mode, align)
    with lock_of(adapter.module):
        setup = set_up(adapter, corrupted, clean, asked, method="exact", calls=True)
        done = _begun(setup, seed, checkpoint, resume)
        return run_cells(setup, memory, done, progress=progress, checkpoint=checkpoint)


def _check_file(checkpoint: Path) -> None:
    if checkpoint.suffix.lower() != ".safetensors":
        raise ValueError(f"checkpoint is {str(checkpoint)!r}; end the name in .safetensors")
    if not checkpoint.parent.is_dir():
        raise ValueError(f"checkpoint is {str(checkpoint)!r}; there is no such folder")


def _begun(
    setup: Setup, seed: int, checkpoint: str | Path | None, resume: PatchResult | None
) -> PatchResult:
    """What has been finished before, or nothing."""
    fresh = empty_result(setup, "exact", seed)
    earlier = [] if resume is None else [("resume", resume)]
    if checkpoint is not None and Path(checkpoint).exists():
        earlier.append((str(checkpoint), PatchResult.load(checkpoint)))
    for name, one in earlier:
        if one.recipe != setup.recipe:
            raise ValueError(
                f"{name} holds another sweep (of {one.site}, {one.metric}); model, inputs, site, "
                "layers, positions, heads, metric and mode must be the same to go on"
            )
        if one.raw.shape != fresh.raw.shape:
            raise ValueError(f"{name} is a part of the sweep ({one!r}); give the whole result")
        if not (_close(one.corrupted, fresh.corrupted) and _close(one.clean, fresh.clean)):
            raise ValueError(
                f"{name} holds another sweep: its unpatched runs have another {one.metric}. A "
                "function of that name, a weight or an installed graph has changed since"
            )
    raw = fresh.raw
    for _, one in earlier:
        raw = torch.where(raw.isnan(), one.raw, raw)
    return dataclasses.replace(fresh, raw=raw)


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal up to what other threads or devices round."""
    return torch.allclose(one, other, rtol=1e-2, atol=1e-3 * float(other.abs().max()))
