"""Pre-train from a recipe: python training/pretrain.py --config FILE.yaml, or through accelerate launch."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["pretrain", *sys.argv[1:]]))
