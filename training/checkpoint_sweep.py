"""Measure accuracy and FID of every checkpoint of a run: python training/checkpoint_sweep.py RUN --fid 10000."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["checkpoint_sweep", *sys.argv[1:]]))
