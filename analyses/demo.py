"""`regap demo`: collapse, correction and ReGap on the shipped organism."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

import model_adapters
from analyses.organism.arms import SHIPPED, Frozen
from analyses.organism.story import items_in_all, tell
from analyses.organism.tables import as_text

N_TEXT, N_JSON = 100, 400


def main(arguments: Sequence[str]) -> int:
    """Run the demo and print its tables."""
    parser = argparse.ArgumentParser(
        prog="regap demo",
        description="Shows safety collapse, its correction and ReGap on the shipped organism, with "
        "the shipped bundles, which `regap calibrate` made.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--html", type=Path, help="also write a report with figures to this file")
    parser.add_argument("--model", default="organism", help="name or folder (default: organism)")
    parser.add_argument("--bundles", type=Path, default=SHIPPED, help="folder of `regap calibrate`")
    parser.add_argument(
        "--n", type=int, help=f"items a cell (default: {N_TEXT}, with --json {N_JSON})"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the items (default: 0)")
    options = parser.parse_args(arguments)
    n = options.n if options.n is not None else (N_JSON if options.json else N_TEXT)
    if n < 2:
        parser.error(f"--n is {n}; a cell needs at least 2 items")
    if options.html is not None and not options.html.absolute().parent.is_dir():
        parser.error(f"--html: there is no folder {options.html.absolute().parent}")
    # The tensors are small: more threads cost more than they save, and move the last bits.
    torch.set_num_threads(1)
    adapter = model_adapters.load(options.model)
    frozen = Frozen.load(options.bundles, adapter)
    with tqdm(total=items_in_all(n), unit=" requests", file=sys.stderr, leave=False) as bar:
        story = tell(adapter, frozen, n=n, seed=options.seed, tick=bar.update)
    if options.json:
        print(json.dumps(story.as_json(), indent=1, allow_nan=False))
    else:
        print(
            f"{adapter.model_id}: {type(adapter.module).__name__}, {adapter.n_layers} layers, "
            f"{sum(p.numel() for p in adapter.module.parameters()) / 1e6:.1f} M parameters\n"
        )
        print(as_text(story))
    if options.html is not None:
        from analyses.organism.page import as_html

        options.html.write_text(as_html(story), encoding="utf-8")
        print(f"wrote {options.html}", file=sys.stderr)
    return 0
