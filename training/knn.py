"""kNN accuracy of a checkpoint's features: python training/knn.py CHECKPOINT [--dataset NAME] [options]."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("knn", sys.argv[1:]))
