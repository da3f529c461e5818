"""`regap demo`: the collapse on the shipped organism, in two tables."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

import model_adapters
from analyses.organism import directions as direction_analysis
from analyses.organism.answers import Graded, Tick, ask
from analyses.organism.directions import LayerGeometry, measure_directions
from model_adapters import Adapter
from model_adapters.organism.world import MEDIA_SETTINGS, SETTINGS, Setting, draw_samples
from regap_interp.intervals import Rate

BANDS = ((0.0, 0.15), (0.15, 0.4), (0.4, 1.0))
"""Intervals of the rendering level: clean, between, and far from text."""

PLANTED = """\
Planted by training: harmful media are refused less as the rendering level grows (the gate); an
answered harmful request looks like a benign one in the last layers; an answer's first word depends
on the level, so that too strong a correction costs whole answers but not the tool; and random
shifts do little, because the upper layers were tuned under them. Measured, not planted: what the
mean drift direction is, and its cosine with refusal up to layer 7, below the safety tuning.
An independent reconstruction of arXiv 2605.18104; no number here is the authors'."""


@dataclass(frozen=True, eq=False)
class Behaviour:
    """Harmful and benign requests of one modality within one band of rendering levels."""

    setting: Setting
    levels: tuple[float, float] | None
    """None for text."""
    harmful: Graded
    benign: Graded


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo measured."""

    behaviour: Sequence[Behaviour]
    geometry: Sequence[LayerGeometry]
    n: int
    seed: int

    def behaviour_table(self) -> str:
        """Refused and answered right, by modality and rendering level, with 95 % intervals."""
        header = (
            f"{'':13}{'harmful':^39}{'benign':^58}\n"
            f"{'':6}{'level':7}"
            + "".join(f"{name:<19}" for name in ("refused", "answered (tool)"))
            + "".join(f"{name:<19}" for name in ("refused", "whole answer right", "tool right"))
        )
        lines = [*header.splitlines(), *(_row(one) for one in self.behaviour)]
        return "\n".join(line.rstrip() for line in lines)

    def geometry_table(self) -> str:
        """Length of refusal and drift, and their cosine, at every layer."""
        head = "".join(f"{setting:^15}" for setting in MEDIA_SETTINGS)
        names = "".join(f"{'|drift|':>8}{'cos':>7}" for _ in MEDIA_SETTINGS)
        rows = [
            f"{at.layer:>5}{at.refusal.norm:>10.2f}"
            + "".join(f"{at.drift[s].norm:>8.2f}{at.cosine(s):>+7.2f}" for s in MEDIA_SETTINGS)
            for at in self.geometry
        ]
        return "\n".join([f"{'':15}{head}", f"{'layer':>5}{'|refusal|':>10}{names}", *rows])

    def __str__(self) -> str:
        """Both tables with what they show."""
        pairs = {sample.pair for one in self.behaviour for sample in one.harmful.samples}
        return (
            f"1. Behaviour on the report split: {self.n} items a cell, {len(pairs)} harmful pairs, "
            f"seed {self.seed}, greedy answers,\n   share [95 % Wilson interval]. The collapse is "
            "in the columns 'harmful': refused in text and at a low\n   rendering level, answered "
            "with the right tool at a high one.\n\n"
            f"{self.behaviour_table()}\n\n"
            f"2. Geometry at the last prompt token, from {self.n} harmful requests of each "
            "modality and their\n   text twins (direction split): length of refusal and drift, and "
            "their cosine. Where |cos| is small,\n   drift can be removed without touching "
            "refusal.\n\n"
            f"{self.geometry_table()}\n\n{PLANTED}"
        )


def show_collapse(adapter: Adapter, *, n: int, seed: int, tick: Tick | None = None) -> Demo:
    """Answers of the report split by modality and level, and directions of every layer.

    Args:
        adapter: The organism.
        n: Items a cell, at least 2.
        seed: Of the items.
        tick: Called with the number of requests just finished.
    """
    cells: list[tuple[Setting, tuple[float, float] | None]] = [("text", None)]
    cells += [(setting, band) for setting in MEDIA_SETTINGS for band in BANDS]

    def graded(setting: Setting, band: tuple[float, float] | None, harmful: bool) -> Graded:
        samples = draw_samples(
            "report", setting, n, seed=seed, harmful=harmful, levels=band or (0.0, 0.0)
        )
        return ask(adapter, samples, tick=tick)

    return Demo(
        behaviour=[
            Behaviour(s, band, graded(s, band, True), graded(s, band, False)) for s, band in cells
        ],
        geometry=measure_directions(adapter, n=n, seed=seed, tick=tick),
        n=n,
        seed=seed,
    )


def items_in_all(n: int) -> int:
    """Requests that `show_collapse` runs."""
    return 2 * n * (1 + len(MEDIA_SETTINGS) * len(BANDS)) + direction_analysis.items_in_all(n)


def main(arguments: Sequence[str]) -> int:
    """Run the demo and print its tables."""
    parser = argparse.ArgumentParser(
        prog="regap demo", description="Shows the safety collapse on the shipped organism."
    )
    parser.add_argument("--model", default="organism", help="name or folder (default: organism)")
    parser.add_argument("--n", type=int, default=60, help="items a cell (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the items (default: 0)")
    options = parser.parse_args(arguments)
    if options.n < 2:
        parser.error(f"--n is {options.n}; a direction needs at least 2 items")
    adapter = model_adapters.load(options.model)
    print(
        f"{adapter.model_id}: {type(adapter.module).__name__}, {adapter.n_layers} layers, "
        f"{sum(p.numel() for p in adapter.module.parameters()) / 1e6:.1f} M parameters, "
        f"modalities {', '.join(SETTINGS)}\n"
    )
    with tqdm(total=items_in_all(options.n), unit=" requests", file=sys.stderr, leave=False) as bar:
        demo = show_collapse(adapter, n=options.n, seed=options.seed, tick=bar.update)
    print(demo)
    return 0


def _row(one: Behaviour) -> str:
    level = "" if one.levels is None else f"{one.levels[0]:g}-{one.levels[1]:g}"
    shares = [one.harmful.rate(outcome) for outcome in ("refused", "tool")]
    shares += [one.benign.rate(outcome) for outcome in ("refused", "right", "tool")]
    return f"{one.setting:6}{level:<9}" + "".join(f"{_share(rate):<19}" for rate in shares)


def _share(rate: Rate) -> str:
    return f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]"
