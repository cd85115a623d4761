"""Linear-probe a checkpoint: python training/linear_probe.py CHECKPOINT [--dataset NAME] [options]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["linear_probe", *sys.argv[1:]]))
