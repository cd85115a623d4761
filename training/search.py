"""Find the images nearest to an image: python training/search.py FOLDER IMAGE [options]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["search", *sys.argv[1:]]))
