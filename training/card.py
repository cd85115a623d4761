"""Write a run's model card: python training/card.py FOLDER."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("card", sys.argv[1:]))
