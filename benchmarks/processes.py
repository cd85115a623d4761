"""Compare two processes of one thread each with one process of one thread: pre-training, extraction, grid search.

Both launches are started once and wait in between, and their calls alternate. A call is the whole command with gloo on
the CPU, without the start of Python: it opens the data, loads the model, works and writes. Ideal is 2; pre-training
averages gradients, and the main process alone fits the grid search's probes and writes checkpoints and tables. Enough
images are used that what a call does once, about a second, weighs little. Run it on an idle machine with at least two
cores, a quarter of an hour. Target: the interval reaches 1.8x.

    python benchmarks/processes.py [--pairs N] [--tiny]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import compare


TARGET = 1.8
IMAGES, BUDGET = 3072, 768  # images of the data set, and those that pre-training sees
TINY_IMAGES = 64
MODEL = "--size tiny --image_size 32 --patch_size 4 --latent_dim 16".split()
TINY = "--size nano --image_size 16 --patch_size 4 --latent_dim 8".split()


def serve() -> None:
    """Run a verb for each line of the standard input, and answer each with its exit status."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    import torch.distributed
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from ldae.cli import run_verb

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        port, verb, *arguments = json.loads(line)
        os.environ["MASTER_PORT"] = port  # each call is a launch of its own
        status = run_verb(verb, arguments)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        print(status, file=answers, flush=True)


class Launch:
    """Processes that wait for verbs, with one thread each."""

    def __init__(self, count: int) -> None:
        shared = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
        shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)} if count > 1 else {}
        self.processes = []
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            command = [sys.executable, __file__, "--serve"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(command, env={**os.environ, **shared, **own}, **pipes))
        self._answers("ready")

    def run(self, verb: str, *arguments: object) -> None:
        """Run a verb in all processes, and wait for the last."""
        line = json.dumps([str(random.randint(20000, 40000)), verb, *map(str, arguments)])
        for process in self.processes:
            print(line, file=process.stdin, flush=True)
        self._answers("0")

    def _answers(self, expected: str) -> None:
        for process in self.processes:
            answer = process.stdout.readline().strip()
            if answer != expected:
                raise RuntimeError(f"a process answered {answer!r} in place of {expected!r}; run the verb by hand.")

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()
            process.wait()


def calls_of(launch: Launch, place: Path, tiny: bool) -> dict[str, Callable[[], None]]:
    """Return what is timed, by name; each call writes to a new folder."""
    data, batch = ["--dataset", place / "images", "--num_workers", "0"], 16 if tiny else 32
    images = TINY_IMAGES if tiny else BUDGET
    quiet = ["--probe_every_images", "0", "--select_features", "false", "--log_every_images", images]
    quiet += ["--checkpoint_every_images", images]

    def new() -> str:
        return tempfile.mkdtemp(dir=place)

    def pretrain() -> None:
        budget = ["--images", images, "--total_batch_size", 2 * batch, "--tokenizer", place / "tokenizer"]
        launch.run("pretrain", *(TINY if tiny else MODEL), *data, *budget, *quiet, "--output_dir", new())

    def extract() -> None:
        options = ["--device", "cpu", "--batch_size", batch, "--rows_per_shard", batch]
        launch.run("extract_features", place / "run", *data, *options, "--output_dir", new())

    def grid_search() -> None:
        options = ["--layers", "1,2", "--timesteps", "0,10", "--forward_batch_size", batch]
        launch.run("grid_search", place / "run", *data, *options, "--output_dir", new())

    return {"pre-training": pretrain, "extraction": extract, "grid search": grid_search}


def prepare(place: Path, launch: Launch, images: int, tiny: bool) -> None:
    """Write images of digits, and make the tokenizer and the checkpoint."""
    from ldae.data import DataConfig, open_images

    (place / "images").mkdir()
    for split, count in (("train", images), ("test", images // 4)):
        rows = open_images(DataConfig("digits"), split).dataset.with_format(None)
        rows.select([i % len(rows) for i in range(count)]).to_parquet(place / "images" / f"{split}.parquet")
    model, data = TINY if tiny else MODEL, ["--dataset", place / "images", "--num_workers", "0"]
    launch.run("train_tokenizer", *model, *data, "--output_dir", place / "tokenizer")
    short = ["--images", 64, "--total_batch_size", 32, "--select_features", "false", "--probe_every_images", "0"]
    launch.run("pretrain", *model, *data, *short, "--tokenizer", place / "tokenizer", "--output_dir", place / "run")


def main(pairs: int, tiny: bool) -> None:
    images = TINY_IMAGES if tiny else IMAGES
    one, two = Launch(1), Launch(2)
    try:
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory)
            prepare(place, one, images, tiny)
            ours, peers = (calls_of(launch, place, tiny) for launch in (two, one))
            for name, call in ours.items():
                compare(
                    f"{name}, two processes against one",
                    call,
                    peers[name],
                    pairs=pairs,
                    target=None if tiny else TARGET,
                )
    finally:
        one.close()
        two.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--tiny", action="store_true", help="a small model and few images, to see that it runs")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
    else:
        from datasets import disable_progress_bars

        disable_progress_bars()
        main(arguments.pairs, arguments.tiny)
