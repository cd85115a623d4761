"""Find the best layer and time step of a checkpoint: python training/grid_search.py CHECKPOINT [--dataset NAME]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["grid_search", *sys.argv[1:]]))
