"""Measure alignment and uniformity of a checkpoint's features: python training/alignment.py CHECKPOINT [options]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["alignment", *sys.argv[1:]]))
