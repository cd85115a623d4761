"""One table of several encoders: python training/compare.py CHECKPOINT [CHECKPOINT ...] [--dataset NAME] [options]."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("compare", sys.argv[1:]))
