"""Run the trajectory: python training/deconstruct.py --config PRESET.yaml --output_dir DIR, or through accelerate launch."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("deconstruct", sys.argv[1:]))
