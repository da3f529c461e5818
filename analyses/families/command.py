"""`regap families`: try every family now and print the table."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from analyses.families.table import as_markdown, as_text
from analyses.families.verify import Verified, as_json, counted, verify
from model_adapters.tiny import builders


def main(argv: Sequence[str]) -> int:
    """Run `regap families`; returns 0 if every check passed, else 1."""
    parser = argparse.ArgumentParser(
        prog="regap families",
        description="Build a tiny random model of every family, check it, and print the table.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, e.g. qwen2_5_vl")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a list of objects")
    form.add_argument("--write", metavar="FILE", help="write the table as a page of the docs")
    options = parser.parse_args(argv)
    known = builders()
    unknown = [name for name in options.names if name not in known]
    if unknown:
        raise ValueError(f"no tiny model {unknown[0]!r}; there are {', '.join(sorted(known))}")
    wanted = {name: known[name] for name in options.names or known}
    # Tiny matrices gain nothing from more, and lose much beside other work.
    torch.set_num_threads(1)
    rows = []
    for number, (name, build) in enumerate(wanted.items(), 1):
        _progress(f"[{number}/{len(wanted)}] {name}")
        rows.append(verify(name, build))
    _progress("")
    if options.json:
        print(as_json(rows))
    elif options.write:
        Path(options.write).write_text(as_markdown(rows), encoding="utf-8")
    else:
        print("\n".join(_lines(rows)))
    return 0 if all(row.verified for row in rows) else 1


def _lines(rows: Sequence[Verified]) -> Iterator[str]:
    yield as_text(rows)
    for row in rows:
        for check, why in row.failures.items():
            yield f"{row.name}: {check}: {why}"
        for kind, why in row.unverified.items():
            yield f"{row.name}: {kind} not verified: {why}"
    yield (
        f"{len(counted(rows))} families verified with at least one medium beside text, "
        f"{sum(row.verified for row in rows)} of {len(rows)} models passed, "
        f"{sum(row.seconds for row in rows):.0f} s"
    )


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
