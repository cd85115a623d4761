"""Linear-probe a checkpoint: python training/linear_probe.py CHECKPOINT [--dataset NAME] [options]."""

import sys

from ldae.verbs.linear_probe import main


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
