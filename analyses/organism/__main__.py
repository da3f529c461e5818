"""`python -m analyses.organism evaluate [--json]`."""

import sys

from analyses.organism.command import evaluate_main

if __name__ == "__main__":
    if sys.argv[1:2] != ["evaluate"]:
        sys.exit("usage: python -m analyses.organism evaluate [--json] [--n N] [--seed SEED]")
    sys.exit(evaluate_main(sys.argv[2:]))
