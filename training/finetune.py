"""Fine-tune a checkpoint: python training/finetune.py CHECKPOINT [--dataset NAME] [options]."""

import sys

from ldae_cli import main


if __name__ == "__main__":
    raise SystemExit(main(["finetune", *sys.argv[1:]]))
