"""A page to look at a checkpoint with: python training/demo.py CHECKPOINT [--export-space DIR] [options]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["demo", *sys.argv[1:]]))
