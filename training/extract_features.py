"""Write the features of a data set as a table: python training/extract_features.py CHECKPOINT --output_dir DIR."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["extract_features", *sys.argv[1:]]))
