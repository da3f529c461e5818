"""What ReGap and captures cost on a Qwen2.5-Omni thinker of random weights.

    python -m benchmarks.interventions [--json]

24 layers, width 768, float32, 2 threads, 8 prompts of 256 tokens with an image in each. Both sides
of a ratio take turns in one process; the value is the median over pairs of neighbouring runs. The
bars are for the CPU. Where there is a GPU, ReGap is timed there too. Takes under 40 minutes on 2
cores; exit code 1 when a ratio is above its bar.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks import capture
from benchmarks.measure import Measured, measure, runs_in_all
from benchmarks.setting import FULL, Size, build
from benchmarks.timing import Progress, machine

RUNS = 5
CAPTURE_RUNS = 3
THREADS = 2


def bars(size: Size, prefill: float, step: float) -> dict[str, float]:
    """The largest ratio that each key may have.

    Args:
        size: Of the benchmark.
        prefill: Seconds of an undefended prefill.
        step: Seconds of an undefended step of decoding.
    """
    above = (size.layers - size.edited) / size.layers
    between = (size.read - size.edited) / size.layers
    share = prefill / (prefill + size.steps * step)
    return {
        "prefill_none": 1.05,
        "prefill_none_depth_gain": 1.05,
        "prefill_paired": 1 + 1.25 * between,
        "prefill_all": 1 + 1.25 * above,
        "decode_step": 1.02,
        "generate_quarter": min(1 + 1.25 * 0.25 * above * share, 1.10),
        **capture.BARS,
    }


def report(measured: Measured, size: Size) -> dict[str, Any]:
    """The figures of one device: ratios with bars and runs, P, D, and peers."""
    p, d = statistics.median(measured.prefills), statistics.median(measured.steps)
    limits = bars(size, p, d)
    return {
        "ratios": {
            key: {"value": ratio.value, "bar": limits[key], "runs": ratio.pairs()}
            for key, ratio in measured.ratios.items()
        },
        "P": p,
        "D": d,
        "peers": {
            "generate_quarter_two_passes": {
                "value": measured.two_pass.value,
                "runs": measured.two_pass.pairs(),
            }
        },
    }


def table(found: Mapping[str, Any]) -> str:
    """A report's figures for reading."""
    rows = [f"{'':32} {'ratio':>6} {'bar':>6}       {'smallest':>8} {'largest':>8} {'runs':>5}"]
    for key, ratio in found["ratios"].items():
        verdict = "ok" if ratio["value"] <= ratio["bar"] else "MISS"
        rows.append(f"{_row(key, ratio)} {ratio['bar']:6.3f} {verdict:5} {_range(ratio)}")
    for key, ratio in found["peers"].items():
        rows.append(f"{_row(key, ratio)} {'':6} {'peer':5} {_range(ratio)}")
    rows.append(f"P, an undefended prefill: {found['P']:.3f} s")
    rows.append(f"D, an undefended step of decoding: {found['D']:.4f} s")
    return "\n".join(rows)


def _row(key: str, ratio: Mapping[str, Any]) -> str:
    return f"{key:32} {ratio['value']:6.3f}"


def _range(ratio: Mapping[str, Any]) -> str:
    of = _ratios(ratio)
    return f"{min(of):8.3f} {max(of):8.3f} {len(of):5}"


def _ratios(ratio: Mapping[str, Any]) -> list[float]:
    return [ours / theirs for ours, theirs in ratio["runs"]]


def missed(found: Mapping[str, Any]) -> list[str]:
    """Keys above their bar."""
    return [key for key, ratio in found["ratios"].items() if not ratio["value"] <= ratio["bar"]]


def captured() -> tuple[dict[str, Any], dict[str, Any]]:
    """Ratios of captures, and of other libraries' captures, both over the bare decoder."""
    found = capture.capture_ratios(runs=CAPTURE_RUNS, peers=True)
    found["capture_memory"] = capture.memory_ratio(runs=CAPTURE_RUNS)
    ours = {key: {**found[key], "bar": bar} for key, bar in capture.BARS.items()}
    return ours, {f"capture_all_{key}": of for key, of in found.items() if key not in ours}


def on_device(size: Size, device: str, runs: int) -> dict[str, Any]:
    """Build the model on a device and time ReGap there."""
    progress = Progress(runs_in_all(runs))
    print(f"building the model on {device}", file=sys.stderr)
    found = report(measure(build(size, device), runs, progress), size)
    progress.close()
    # Half an hour's work: shown at once, whatever becomes of the rest.
    print(table(found), file=sys.stderr)
    return {**found, "machine": machine(torch.device(device))}


def main() -> int:
    """Print the table, or one JSON object; exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    found = on_device(FULL, "cpu", RUNS)
    ratios, peers = captured()
    found["ratios"] |= ratios
    found["peers"] |= peers
    if torch.cuda.is_available():
        found["gpu"] = on_device(FULL, "cuda", RUNS)
    if options.json:
        print(json.dumps(found))
    else:
        print(table(found))
        if "gpu" in found:
            print(f"\non {found['gpu']['machine']['gpu']}:\n{table(found['gpu'])}")
        print("\n" + ", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    return 1 if missed(found) else 0


if __name__ == "__main__":
    sys.exit(main())
