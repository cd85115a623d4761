"""Sample images from a checkpoint, with FID and KID: python training/generate.py CHECKPOINT [--fid N] [options]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["generate", *sys.argv[1:]]))
