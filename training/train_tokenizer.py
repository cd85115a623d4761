"""Fit a recipe's latent tokenizer: python training/train_tokenizer.py --config FILE.yaml --output_dir DIR."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("train_tokenizer", sys.argv[1:]))
