"""What limits a recipe, here or on other machines: python training/doctor.py --config FILE.yaml [--on h100]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["doctor", *sys.argv[1:]]))
