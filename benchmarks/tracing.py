"""What an adapter costs: wrapping a model with its self-check, and a trace that reads one layer.

    python -m benchmarks.tracing [--json] [--runs N]

Wrapping: a Qwen2.5-Omni thinker of tiny width with 600 modules and more, in seconds. Tracing: one
of 200 million parameters, 4 prompts of 128 tokens, against a plain forward hook that keeps the same
state; the sides take turns in one process. Exit code 1 when a figure is above its bar.
"""

import argparse
import json
import statistics
import sys
from typing import Any

import torch
from torch import Tensor

import model_adapters
from benchmarks.capture import build_thinker
from benchmarks.timing import Progress, Ratio, alternate, machine, seconds
from model_adapters import Adapter

BARS = {"wrap_seconds": 0.5, "read_one_layer": 1.05}
MODULES = 600
CPU = torch.device("cpu")


def wrapping(layers: int, runs: int, progress: Progress) -> tuple[int, list[float]]:
    """Modules of the model, and seconds of wrapping a fresh copy of it, self-check included."""
    taken, modules = [], 0
    for run in range(runs + 1):
        model = build_thinker(layers=layers, hidden=64, mlp=64)
        modules = len(list(model.modules()))
        progress.step("wrapping")
        passed = seconds(lambda model=model: model_adapters.load(model), CPU)  # type: ignore[misc]
        if run:
            taken.append(passed)
    return modules, taken


def reading(adapter: Adapter, inputs: dict[str, Any], runs: int, progress: Progress) -> Ratio:
    """A trace that reads the stream after one layer, against a plain hook that keeps it."""
    layer = adapter.n_layers // 2
    module = adapter.module.get_submodule(f"{adapter.layout.layers}.{layer}")
    kept: list[Tensor] = []

    def hooked() -> None:
        handle = module.register_forward_hook(lambda _, args, output: kept.append(output))
        with torch.no_grad():
            adapter.module(**inputs)
        handle.remove()

    def traced() -> None:
        with adapter.trace(**inputs):
            kept.append(adapter.resid_post[layer])

    found = alternate(
        {"hook": lambda: seconds(hooked, CPU), "trace": lambda: seconds(traced, CPU)},
        runs,
        progress,
    )
    if not all(torch.equal(kept[0], other) for other in kept):
        raise RuntimeError("the trace read other states than the hook; nothing to compare")
    return Ratio(found["trace"], found["hook"])


def measure(runs: int, *, layers: int = 44, hidden: int = 768, depth: int = 20) -> dict[str, Any]:
    """Both figures with their bars, runs and sizes."""
    progress = Progress(3 * (runs + 1))
    modules, taken = wrapping(layers, runs, progress)
    adapter = model_adapters.load(build_thinker(layers=depth, hidden=hidden, mlp=4 * hidden))
    ids = torch.randint(16, 4000, (4, 128), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    ratio = reading(adapter, inputs, runs, progress)
    progress.close()
    return {
        "wrap_seconds": {
            "value": statistics.median(taken),
            "bar": BARS["wrap_seconds"],
            "modules": modules,
            "runs": taken,
        },
        "read_one_layer": {
            "value": ratio.value,
            "bar": BARS["read_one_layer"],
            "spread": ratio.spread,
            "parameters": sum(p.numel() for p in adapter.module.parameters()),
            "runs": ratio.pairs(),
        },
        "machine": machine(CPU),
    }


def main() -> int:
    """Print both figures; exit code 1 when one is above its bar."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--runs", type=int, default=9, help="counted runs a side, at least 3")
    options = parser.parse_args()
    if options.runs < 3:
        parser.error(f"--runs is {options.runs}; a median needs at least 3 runs a side")
    found = measure(options.runs)
    if options.json:
        print(json.dumps(found))
    else:
        wrap, read = found["wrap_seconds"], found["read_one_layer"]
        print(
            f"wrapping and self-check, {wrap['modules']} modules: {wrap['value']:.2f} s "
            f"(bar {wrap['bar']} s, median of {options.runs})"
        )
        print(
            f"trace that reads one layer / plain hook, {read['parameters'] / 1e6:.0f} M "
            f"parameters: {read['value']:.3f} (bar {read['bar']}, pairs {read['spread'][0]:.2f} "
            f"to {read['spread'][1]:.2f})"
        )
    return int(any(found[name]["value"] > bar for name, bar in BARS.items()))


if __name__ == "__main__":
    sys.exit(main())
