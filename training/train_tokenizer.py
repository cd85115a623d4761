"""Fit a recipe's latent tokenizer: python training/train_tokenizer.py --config FILE.yaml --output_dir DIR."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["train_tokenizer", *sys.argv[1:]]))
