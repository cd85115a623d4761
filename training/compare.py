"""Compare several encoders in one table: python training/compare.py CHECKPOINT [CHECKPOINT ...] [--dataset NAME]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["compare", *sys.argv[1:]]))
