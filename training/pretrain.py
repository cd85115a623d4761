"""Pre-train from a recipe: python training/pretrain.py --config FILE.yaml, or through accelerate launch."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("pretrain", sys.argv[1:]))
