"""Export a checkpoint: python training/export.py CHECKPOINT --format transformers --output_dir DIR."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("export", sys.argv[1:]))
