"""Export a checkpoint: python training/export.py CHECKPOINT --format transformers --output_dir DIR."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["export", *sys.argv[1:]]))
