"""The best block and time step of a checkpoint: python training/grid_search.py CHECKPOINT [--dataset NAME] [options]."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("grid_search", sys.argv[1:]))
