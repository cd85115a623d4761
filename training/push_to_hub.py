"""Upload a run's folder: python training/push_to_hub.py FOLDER --repo_id NAME."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("push_to_hub", sys.argv[1:]))
