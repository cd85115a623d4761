"""Measure the kNN accuracy of a checkpoint's features: python training/knn.py CHECKPOINT [--dataset NAME]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["knn", *sys.argv[1:]]))
