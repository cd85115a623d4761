"""Measure how well each label-free criterion predicts the labelled choice of block and time step.

    python benchmarks/criteria.py CHECKPOINT [CHECKPOINT ...] --dataset DATASET --output FILE.json

For each checkpoint, every block is scored at every searched time step: by a closed-form ridge probe (a held-out tenth
of the training labels chooses, the test set reports) and by each criterion, which uses no labels. The benchmark prints
and writes Spearman's rank correlation over the cells between each criterion and the test accuracy, and the test
accuracy at the cell that each criterion chooses, at the labelled choice, at the paper's point and at the best cell.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr
from transformers import AutoConfig, AutoModelForPreTraining

import ldae  # noqa: F401 - registers the models with transformers
from ldae.data import DataConfig, iterate_once, open_probe_images
from ldae.evaluation.criteria import CRITERIA, score_cells
from ldae.evaluation.images import fixed_subset
from ldae.evaluation.search import search_features
from ldae.files import write_whole


def measure(checkpoint: str, dataset: str, num_train: int, num_test: int) -> dict[str, Any]:
    """Score all cells of a checkpoint by labels and without, and compare."""
    config = AutoConfig.from_pretrained(checkpoint)
    model = AutoModelForPreTraining.from_pretrained(checkpoint).eval().base_model
    size = {"image_size": config.image_size, "num_channels": config.num_channels, "batch_size": 256}
    sources = open_probe_images(DataConfig(dataset))
    train, test = (
        list(iterate_once(fixed_subset(source, limit, seed=0), **size))
        for source, limit in zip(sources, (num_train, num_test), strict=True)
    )
    search = search_features(model, train, test)
    timesteps = list(dict.fromkeys(t for _, t in search.columns))
    found = score_cells(model, train, CRITERIA, layers=model.search_layers, timesteps=timesteps)
    accuracy = search.probes.test
    table = {
        name: {
            "rank_correlation": float(spearmanr(scores.flatten(), accuracy).statistic),
            "cell": search.columns[int(scores.argmax())],
            "test_accuracy": float(accuracy[int(scores.argmax())]),
        }
        for name, scores in found.items()
    }
    fixed = {"labels (held-out)": search.chosen, "paper's point": search.paper, "best cell": int(accuracy.argmax())}
    table |= {
        name: {"rank_correlation": None, "cell": search.columns[i], "test_accuracy": float(accuracy[i])}
        for name, i in fixed.items()
    }
    table["labels (held-out)"]["rank_correlation"] = float(spearmanr(search.probes.held_out, accuracy).statistic)
    return {
        "checkpoint": Path(checkpoint).name,
        "dataset": Path(dataset).name,
        "train_images": sum(len(batch.images) for batch in train),
        "test_images": sum(len(batch.images) for batch in test),
        "columns": search.columns,
        "test_accuracy": accuracy.tolist(),
        "held_out_accuracy": search.probes.held_out.tolist(),
        "criteria": {name: scores.flatten().tolist() for name, scores in found.items()},
        "table": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--num_train", type=int, default=5000)
    parser.add_argument("--num_test", type=int, default=2000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    measured = [measure(name, options.dataset, options.num_train, options.num_test) for name in options.checkpoints]
    for result in measured:
        print(f"\n{result['checkpoint']} on {result['dataset']}, {len(result['columns'])} cells")
        print(f"{'criterion':24s} {'rank correlation':>16s} {'chosen cell':>32s} {'test accuracy':>14s}")
        for name, row in result["table"].items():
            rank = "" if row["rank_correlation"] is None else f"{row['rank_correlation']:.2f}"
            layer, timestep = row["cell"]
            print(f"{name:24s} {rank:>16s} {f'{layer}, t = {timestep}':>32s} {row['test_accuracy']:14.1%}")
    if options.output:
        write_whole(options.output, json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
