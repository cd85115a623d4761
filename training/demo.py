"""Serve a page that shows what a checkpoint does: python training/demo.py CHECKPOINT [--export-space DIR]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["demo", *sys.argv[1:]]))
