"""Upload a run's folder: python training/push_to_hub.py FOLDER --repo_id NAME."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["push_to_hub", *sys.argv[1:]]))
