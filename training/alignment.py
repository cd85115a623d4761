"""Alignment and uniformity of a checkpoint's features: python training/alignment.py CHECKPOINT [--checkpoints] [options]."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("alignment", sys.argv[1:]))
