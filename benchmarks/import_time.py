"""What importing the three packages costs beyond torch, transformers and nnsight.

    python -m benchmarks.import_time [--json]

Fresh processes, the two sides in turn, so that a slow spell of the machine hits both.
"""

import argparse
import json
import statistics
import subprocess
import sys

BASE = ("torch", "transformers", "nnsight")
OURS = ("model_adapters", "regap_interp", "analyses")
BAR_SECONDS = 0.3


def seconds_to_import(*modules: str) -> float:
    """Wall time one fresh interpreter takes to import `modules`, its own start not counted."""
    program = (
        "import time; start = time.perf_counter(); "
        f"import {', '.join(modules)}; print(time.perf_counter() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def main() -> int:
    """Print the medians and their difference; exit code 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--runs", type=int, default=7, help="fresh processes a side, at least 5")
    options = parser.parse_args()
    if options.runs < 5:
        parser.error(f"--runs is {options.runs}; a median needs at least 5 runs a side")

    seconds_to_import(*BASE, *OURS)  # the first run reads the files from disk
    base, both = [], []
    for run in range(options.runs):
        base.append(seconds_to_import(*BASE))
        both.append(seconds_to_import(*BASE, *OURS))
        print(f"\rrun {run + 1} of {options.runs}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)

    base_median, both_median = statistics.median(base), statistics.median(both)
    added = both_median - base_median
    if options.json:
        result = {
            "added": {"value": added, "bar": BAR_SECONDS, "unit": "seconds"},
            "base": {"median": base_median, "runs": base},
            "with_ours": {"median": both_median, "runs": both},
        }
        print(json.dumps(result))
    else:
        print(f"{', '.join(BASE)}: {base_median:.2f} s (median of {options.runs})")
        print(f"with {', '.join(OURS)}: {both_median:.2f} s")
        print(f"added: {added:.2f} s, bar {BAR_SECONDS} s")
    return 0 if added <= BAR_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
