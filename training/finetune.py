"""Fine-tune a checkpoint: python training/finetune.py CHECKPOINT [--dataset NAME] [options]."""

import sys

from ldae.cli import run_verb


if __name__ == "__main__":
    raise SystemExit(run_verb("finetune", sys.argv[1:]))
