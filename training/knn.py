"""kNN accuracy of a checkpoint's features: python training/knn.py CHECKPOINT [--dataset NAME] [options]."""

import sys

from ldae.verbs.knn import main


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
