"""Sample pictures of a checkpoint, and their FID and KID: python training/generate.py CHECKPOINT [--fid N] [options]."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("generate", sys.argv[1:]))
