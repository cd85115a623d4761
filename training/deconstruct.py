"""Run the trajectory: python training/deconstruct.py --config PRESET.yaml --output_dir DIR (or accelerate launch)."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["deconstruct", *sys.argv[1:]]))
