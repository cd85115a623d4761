"""Accuracy over the noise levels: python training/noise_classification.py CHECKPOINT [--finetune] [options]."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("noise_classification", sys.argv[1:]))
