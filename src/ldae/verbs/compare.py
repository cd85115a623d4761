"""`ldae compare CHECKPOINT ...`: one table of several encoders, ours and other people's, under the same probes."""

from typing import Any

import torch

from ldae.evaluation.evaluate import Evaluation
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.processes import choose_device
from ldae.results import check_results
from ldae.shared_work import is_main, main_first
from ldae.verbs.inputs import data_config
from ldae.verbs.options.measure import CompareOptions


def compare(options: CompareOptions) -> int:
    """Run `ldae compare`."""
    if not options.checkpoints:
        raise ValueError("checkpoints is missing; give one or more folders or Hub ids.")
    if len(set(options.checkpoints)) < len(options.checkpoints):
        raise ValueError(f"checkpoints={','.join(options.checkpoints)} names one twice; give each once.")
    if options.whiten is not None and not {"knn", "retrieval"} & set(options.metrics):
        raise ValueError(f"whiten={options.whiten} only applies with knn or retrieval in --metrics.")
    if options.output_dir is not None:
        check_results(options.output_dir)
    config = data_config(options, options.checkpoints[0])
    evaluation = main_first(
        lambda: Evaluation(
            config,
            device=choose_device(options.device),
            dtype=torch.bfloat16 if options.mixed_precision == "bf16" else None,
            batch_size=options.forward_batch_size,
            num_workers=config.num_workers,
            max_train=options.max_train,
            max_test=options.max_test,
        )
    )
    taken: dict[str, dict[str, Any]] = {
        "few_shot": {"shots": options.shots, "draws": options.draws},
        "knn": {"k": options.k, "whiten": options.whiten},
        "retrieval": {"whiten": options.whiten},
        "linear": {"settings": ProbeSettings(epochs=options.epochs, seeds=tuple(options.seeds))},
        "robustness": {"sigmas": tuple(options.sigmas)},
    }
    chosen = {name: value for metric in options.metrics for name, value in taken.get(metric, {}).items()}
    table = evaluation.compare(
        *options.checkpoints,
        metrics=options.metrics,
        untrained=options.untrained,
        raw_pixels=options.raw_pixels,
        **chosen,
    )
    if not is_main():
        return 0
    print(table)
    if options.output_dir is not None:
        print(f"Added to {table.save(options.output_dir)}")
    return 0
