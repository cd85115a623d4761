"""The features of a whole data set as a table: python training/extract_features.py CHECKPOINT --output_dir DIR [options]."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("extract_features", sys.argv[1:]))
