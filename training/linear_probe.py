"""Linear-probe a checkpoint: python training/linear_probe.py CHECKPOINT [--dataset NAME] [options]."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("linear_probe", sys.argv[1:]))
