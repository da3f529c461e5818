"""`regap evaluate`, and `python -m analyses.organism evaluate`."""

import argparse
import json
import sys
from collections.abc import Sequence

from tqdm import tqdm

import model_adapters
from analyses.organism.report import LEAST_ITEMS, evaluate, items_in_all


def evaluate_main(arguments: Sequence[str]) -> int:
    """Measure a model against the organism's bars; returns 1 when one of them does not hold."""
    parser = argparse.ArgumentParser(
        prog="regap evaluate",
        description="Measures the organism on its report split; everything that is chosen is "
        "chosen on the calibration split. Takes some minutes.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--model", default="organism", help="name or folder (default: organism)")
    parser.add_argument("--n", type=int, default=400, help="items a cell (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the items (default: 0)")
    options = parser.parse_args(arguments)
    if options.n < LEAST_ITEMS:
        parser.error(f"--n is {options.n}; a correction is chosen from {LEAST_ITEMS} at least")
    adapter = model_adapters.load(options.model)
    with tqdm(total=items_in_all(adapter, options.n), unit="request", file=sys.stderr) as bar:
        evaluation = evaluate(adapter, n=options.n, seed=options.seed, tick=bar.update)
    if options.json:
        print(json.dumps(evaluation.as_json(), indent=1, allow_nan=False))
    else:
        print(evaluation)
    return 0 if all(bar.holds for bar in evaluation.bars()) else 1
