"""Measure accuracy over the noise levels: python training/noise_classification.py CHECKPOINT [--finetune]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["noise_classification", *sys.argv[1:]]))
