"""Write a run's model card: python training/card.py FOLDER."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["card", *sys.argv[1:]]))
