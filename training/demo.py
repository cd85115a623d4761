"""A page to look at a checkpoint with: python training/demo.py CHECKPOINT [--export-space DIR] [options]."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("demo", sys.argv[1:]))
