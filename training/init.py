"""Write a recipe for your own images: python training/init.py FOLDER [--option value ...]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["init", *sys.argv[1:]]))
