"""One table of several encoders: python training/compare.py CHECKPOINT [CHECKPOINT ...] [--dataset NAME] [options]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["compare", *sys.argv[1:]]))
