"""The images nearest to an image: python training/search.py FOLDER IMAGE [options]."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("search", sys.argv[1:]))
