"""What ReGap costs, run by run: prefill, decoding, generation."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import regap_interp as ri
from benchmarks.setting import STRONG, Setting, regap
from benchmarks.timing import Progress, Ratio, alternate, seconds, timed
from model_adapters import Adapter


@dataclass(frozen=True)
class Measured:
    """Everything that was timed on one device."""

    ratios: Mapping[str, Ratio]
    """By key of the report."""
    two_pass: Ratio
    """As `generate_quarter`, every pass run from the start."""
    prefills: tuple[float, ...]
    """Seconds of every undefended prefill."""
    steps: tuple[float, ...]
    """Seconds of every undefended step of decoding."""


def runs_in_all(runs: int) -> int:
    """Runs and checks that `measure` reports to its progress, warm-up runs included."""
    checks, prefill_sides, decoding, generation_sides = 5, 4 * 2, 1, 3
    return checks + (prefill_sides + decoding + generation_sides) * (runs + 1)


def measure(setting: Setting, runs: int, progress: Progress) -> Measured:
    """Time ReGap against the bare model; both run the same weights in turn.

    Args:
        setting: Model, batch and directions.
        runs: Runs a side that count.
        progress: Told about every run.

    Raises:
        RuntimeError: when a graph did not do what its row of the table says.
    """
    every = setting.size.batch

    def checked(signal: str, triggered: int, recomputed: int) -> ri.Graph:
        progress.step(f"threshold and check of {signal}, {triggered} rows")
        graph = regap(setting, signal, triggered)
        check(setting, graph, triggered, recomputed)
        return graph

    prefills = {
        "prefill_none": checked("absolute", 0, 0),
        "prefill_none_depth_gain": checked("depth_gain", 0, 0),
        "prefill_paired": checked("paired_gain", 0, every),
        "prefill_all": checked("absolute", every, every),
    }
    quarter = checked("absolute", every // 4, every // 4)
    ratios: dict[str, Ratio] = {}
    bare: list[float] = []
    for key, graph in prefills.items():
        with graph.on(setting.adapter):
            ratios[key] = _pairs(
                key,
                lambda: seconds(lambda: prefill(setting, setting.adapter), setting.device),
                lambda: seconds(lambda: prefill(setting, setting.bare), setting.device),
                runs,
                progress,
            )
        bare += ratios[key].theirs
    ratios["decode_step"] = _decoding(setting, quarter, runs, progress)
    ratios["generate_quarter"], two_pass = _generation(setting, quarter, runs, progress)
    return Measured(ratios, two_pass, tuple(bare), ratios["decode_step"].theirs)


@torch.no_grad()
def prefill(setting: Setting, adapter: Adapter) -> Any:
    """The raw model's own forward over the prompts."""
    return adapter.module(**setting.batch.inputs, use_cache=True)


@torch.no_grad()
def step(adapter: Adapter, token: Tensor, cache: object) -> Any:
    """The raw model's own forward over one new token of every row."""
    return adapter.module(input_ids=token, past_key_values=cache, use_cache=True)


def generate(setting: Setting, adapter: Adapter) -> Tensor:
    """The raw model's own loop: the prefill and so many steps after it."""
    new = setting.size.steps + 1  # the prefill itself gives the first token
    tokens: Tensor = adapter.module.generate(
        **setting.batch.inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False
    )
    return tokens


def check(setting: Setting, graph: ri.Graph, triggered: int, recomputed: int) -> None:
    """Compare a graph with a plain hook that adds what it should, and count rows and hooks.

    Raises:
        RuntimeError: naming what is not as it should be.
    """
    size = setting.size
    with graph.on(setting.adapter) as steered:
        ours = prefill(setting, setting.adapter)
        last = steered.last
        token = ours.logits[:, -1:].argmax(dim=-1)
        ours_next = step(setting.adapter, token, ours.past_key_values)
        hooked = _hooks_in_a_step(setting, token, ours.past_key_values)
    (strength,) = last.strengths.values()
    shift = (strength[:, None, None] * setting.drift).float().to(setting.device)
    layer = setting.bare.module.get_submodule(f"{setting.bare.layout.layers}.{size.edited}")
    handle = layer.register_forward_hook(lambda module, args, output: output + shift)
    plain = prefill(setting, setting.bare)
    handle.remove()
    plain_next = step(setting.bare, token, plain.past_key_values)
    again = size.read - size.edited
    found = {
        "rows triggered": (int((strength == -STRONG).sum()), triggered),
        "layers run again": (int(last.recomputed.sum()), again * recomputed),
        "hooks on layers in decoding": (hooked, 0),
        "logits as with a plain hook": (_close(ours.logits, plain.logits), True),
        "next logits as with a plain hook": (_close(ours_next.logits, plain_next.logits), True),
    }
    wrong = [f"{what}: {got}, not {want}" for what, (got, want) in found.items() if got != want]
    if wrong:
        raise RuntimeError("; ".join(wrong))


def _hooks_in_a_step(setting: Setting, token: Tensor, cache: object) -> int:
    """Hooks on decoder layers and inside them while a step of decoding runs."""
    module, counts = setting.adapter.module, []
    layers = module.get_submodule(setting.adapter.layout.layers)

    def count(*_: object) -> None:
        inside = [part for part in layers.modules()]
        counts.append(sum(len(p._forward_hooks) + len(p._forward_pre_hooks) for p in inside))

    handle = module.get_submodule(setting.adapter.layout.norm).register_forward_pre_hook(count)
    step(setting.adapter, token, cache)
    handle.remove()
    return counts[0]


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Equal but for the order in which float32 sums were taken."""
    return float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())


def _pairs(
    key: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    runs: int,
    progress: Progress,
) -> Ratio:
    found = alternate({f"{key}: bare": theirs, key: ours}, runs, progress)
    return Ratio(found[key], found[f"{key}: bare"])


def _decoding(setting: Setting, graph: ri.Graph, runs: int, progress: Progress) -> Ratio:
    """Two caches go on side by side, one step each in turn."""
    ours: list[float] = []
    theirs: list[float] = []
    with graph.on(setting.adapter):
        for run in range(runs + 1):
            progress.step("decode_step")
            lanes = [(setting.adapter, ours), (setting.bare, theirs)]
            states = {id(adapter): prefill(setting, adapter) for adapter, _ in lanes}
            for number in range(setting.size.timed_steps + 1):
                for adapter, taken in lanes if number % 2 else reversed(lanes):
                    before = states[id(adapter)]
                    token = before.logits[:, -1:].argmax(dim=-1)
                    one = functools.partial(step, adapter, token, before.past_key_values)
                    needed, states[id(adapter)] = timed(one, setting.device)
                    if run and number:
                        taken.append(needed)
    return Ratio(tuple(ours), tuple(theirs))


def _generation(
    setting: Setting, graph: ri.Graph, runs: int, progress: Progress
) -> tuple[Ratio, Ratio]:
    def under(resume: bool) -> float:
        with graph.on(setting.adapter, resume=resume):
            return seconds(lambda: generate(setting, setting.adapter), setting.device)

    found = alternate(
        {
            "generate_quarter": lambda: under(resume=True),
            "bare": lambda: seconds(lambda: generate(setting, setting.bare), setting.device),
            "two passes": lambda: under(resume=False),
        },
        runs,
        progress,
    )
    bare = found["bare"]
    return Ratio(found["generate_quarter"], bare), Ratio(found["two passes"], bare)
