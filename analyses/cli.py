"""The console script `regap`. A command's module is imported only when that command runs."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple


class Command(NamedTuple):
    """One subcommand of `regap`."""

    target: str
    """`"module:function"`; the function takes the remaining arguments and returns an exit code."""
    summary: str


COMMANDS = {
    "demo": Command("analyses.demo:main", "show collapse and correction on the shipped model"),
    "calibrate": Command(
        "analyses.organism.calibrating:main", "choose everything ReGap needs for the shipped model"
    ),
    "families": Command(
        "analyses.families.command:main", "check every model family here and print the table"
    ),
    "evaluate": Command(
        "analyses.organism.command:evaluate_main",
        "measure the shipped model against the bars of its card",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `regap COMMAND [arguments]`; `argv` stands in for the process's own arguments.

    Returns the exit code; a command that cannot go on with what it was given tells why on one line
    and gives 2. Options after the command's name are the command's own, so
    `regap demo --help` is answered by the demo.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    # argparse would take `--help` for itself if it saw what follows the command.
    options = parser.parse_args(arguments[:1])
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return _resolve(COMMANDS[options.command].target)(arguments[1:])
    except Exception as error:
        from model_adapters.errors import AdapterError  # loaded by the command already

        if not isinstance(error, AdapterError | ValueError):
            raise
        print(f"regap {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="regap",
        description="Safety geometry of multimodal language models.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["commands:", *lines, "", "regap COMMAND --help tells its options."]),
    )
    parser.add_argument("--version", action="version", version=f"regap {version('regap-interp')}")
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND", help="see below")
    return parser


def _resolve(target: str) -> Callable[[Sequence[str]], int]:
    module, _, function = target.partition(":")
    resolved: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), function)
    return resolved
