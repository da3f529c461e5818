"""How much faster a patching grid is than TransformerLens's, number for number the same.

    python -m benchmarks.patching [--json] [--runs N]

A full `resid_pre` grid, layer x position, on the Qwen2.5-Omni thinker of the other benchmarks: 24
layers, random weights, one text prompt of 64 tokens, on the CPU. The other side is
`get_act_patch_resid_pre` on a bridge to the same weights. Both start from the two prompts' tokens;
the sides take turns in one process. On two cores a run of both takes several minutes. Exit code 1
when a bar is missed.
"""

import argparse
import contextlib
import io
import json
import sys
from typing import Any

import torch
from torch import Tensor

import model_adapters
from analyses.patching import LogitDifference, patch_sweep
from benchmarks.capture import VOCABULARY, build_thinker, sharing_weights, transformer_lens_bridge
from benchmarks.timing import Progress, Ratio, machine, timed
from model_adapters import Adapter, Batch

BARS = {"speedup": 4.0, "max_difference": 1e-4}
RIGHT, WRONG = 100, 200
"""Tokens whose logits are compared."""
CPU = torch.device("cpu")


def ours(adapter: Adapter, corrupted: Batch, clean: Batch) -> Tensor:
    """The grid, [layer, position]."""
    return patch_sweep(
        adapter,
        corrupted,
        clean,
        site="resid_pre",
        positions="each",
        metric=LogitDifference(RIGHT, WRONG),
    ).raw[0]


@torch.no_grad()
def theirs(bridge: Any, corrupted: Tensor, clean: Tensor) -> Tensor:
    """The same by TransformerLens, told to keep no more of the clean run than it needs."""
    from transformer_lens.patching import get_act_patch_resid_pre

    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(bridge.cfg.n_layers)]
    _, cache = bridge.run_with_cache(clean, names_filter=names)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        return get_act_patch_resid_pre(
            bridge, corrupted, cache, lambda logits: logits[0, -1, RIGHT] - logits[0, -1, WRONG]
        )


def measure(
    runs: int, *, layers: int = 24, hidden: int = 768, positions: int = 64
) -> dict[str, Any]:
    """Both sides, alternated; the largest difference is over all runs."""
    raw = build_thinker(layers, hidden, 4 * hidden)
    bridge = transformer_lens_bridge(sharing_weights(raw))
    adapter = model_adapters.load(raw)
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(10, VOCABULARY, (2, 1, positions), generator=draw)
    grids: dict[str, list[Tensor]] = {"ours": [], "theirs": []}
    progress = Progress(2 * (runs + 1))

    def run(name: str, corrupted: Tensor, clean: Tensor) -> float:
        progress.step(name)
        if name == "theirs":
            taken, grid = timed(lambda: theirs(bridge, corrupted, clean), CPU)
        else:
            batches = [
                adapter.describe(input_ids=ids, attention_mask=torch.ones_like(ids))
                for ids in (corrupted, clean)
            ]
            taken, grid = timed(lambda: ours(adapter, *batches), CPU)
        grids[name].append(grid.double())
        return taken

    seconds: dict[str, list[float]] = {name: [] for name in grids}
    for name in grids:
        # What is done once: on a prompt so short that it costs little.
        run(name, *prompts[:, :, :2])
    for number in range(runs):
        for name in grids if number % 2 else reversed(list(grids)):
            seconds[name].append(run(name, *prompts))
    progress.close()
    ratio = Ratio(tuple(seconds["theirs"]), tuple(seconds["ours"]))
    differences = [
        float((a - b).abs().max()) for a, b in zip(grids["ours"], grids["theirs"], strict=True)
    ]
    return {
        "speedup": ratio.value,
        "max_difference": max(differences),
        "runs": ratio.pairs(),
        "cells": layers * positions,
        "spread": ratio.spread,
        "bars": BARS,
        "machine": machine(CPU),
    }


def main() -> int:
    """Print the figures; exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--runs", type=int, default=3, help="counted runs a side")
    parser.add_argument("--layers", type=int, default=24, help="of the model")
    parser.add_argument("--positions", type=int, default=64, help="of the prompt")
    options = parser.parse_args()
    torch.set_num_threads(2)
    found = measure(options.runs, layers=options.layers, positions=options.positions)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{found['cells']} cells: {found['speedup']:.2f} times as fast (bar 4)")
        print(f"largest difference {found['max_difference']:.1e} (bar 1e-4)")
        for their, our in found["runs"]:
            print(f"  TransformerLens {their:.1f} s, here {our:.1f} s")
    good = found["speedup"] >= BARS["speedup"] and found["max_difference"] <= BARS["max_difference"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
