"""`ldae compare CHECKPOINT ...`: one table of several encoders, ours and other people's, under the same probes."""

import argparse

import torch

from ldae.evaluation.evaluate import METRICS, Evaluation
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.verbs.probe_options import DATA_OPTIONS, boolean, data_config, numbers, parse


def main(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: the command line without the program's name.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    parser = argparse.ArgumentParser(
        "ldae compare",
        description="Measure several frozen encoders on one data set, each by the same probes and each on images of its own "
        "size, and print one table. Encoders are l-DAEs, DDAEs (at their own block and time step), and any vision model of "
        "AutoModel with its image processor: ViTMAE, DINOv2, I-JEPA, a ResNet.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="folders or Hub ids")
    parser.add_argument("--config", help="a YAML file of these options, by name; the command line wins")
    data = parser.add_argument_group("images (default: those of the first checkpoint's recipe.yaml)")
    for name in DATA_OPTIONS:
        data.add_argument(f"--{name}", help="as the recipe's data section")
    parser.add_argument("--max_train", type=int, help="training images at most, drawn at random but always the same")
    parser.add_argument("--max_test", type=int, help="test images at most")
    parser.add_argument(
        "--metrics",
        default="few_shot,knn,retrieval",
        help=f"columns, of {','.join(METRICS)} (default: few_shot,knn,retrieval)",
    )
    parser.add_argument("--shots", type=int, default=5, help="of few_shot: labels a class (default: 5)")
    parser.add_argument("--draws", type=int, default=20, help="of few_shot: how often they are drawn (default: 20)")
    parser.add_argument("--k", type=int, default=20, help="of knn: neighbours that vote (default: 20)")
    parser.add_argument("--epochs", type=int, default=90, help="of linear: passes over the features (default: 90)")
    parser.add_argument("--seeds", default="0,1,2", help="of linear: probe seeds (default: 0,1,2)")
    parser.add_argument(
        "--sigmas",
        default="0.05,0.1,0.2,0.4,0.8",
        help="of robustness: noise on pixels in [-1, 1] (default: 0.05 to 0.8)",
    )
    parser.add_argument("--untrained", type=boolean, nargs="?", const=True, default=False, help="untrained twins too")
    parser.add_argument("--raw_pixels", type=boolean, default=True, help="raw pixels too (default: true)")
    parser.add_argument("--forward_batch_size", type=int, default=256, help="images of a forward (default: 256)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="of the features")
    parser.add_argument("--device", help="cuda, cpu, mps (default: cuda where there is one)")
    parser.add_argument(
        "--output_dir", help="where results.json and comparison.md go (default: nowhere, only printed)"
    )
    options = parse(parser, argv)
    metrics = options.metrics.split(",")
    for name in ("shots", "draws", "k", "epochs", "forward_batch_size", "max_train", "max_test"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} is not possible; give 1 or more.")
    if len(set(options.checkpoints)) < len(options.checkpoints):
        raise ValueError(f"checkpoints={','.join(options.checkpoints)} names one twice; give each once.")
    options.checkpoint = options.checkpoints[0]
    config = data_config(options)
    evaluation = Evaluation(
        config,
        device=options.device,
        dtype=torch.bfloat16 if options.mixed_precision == "bf16" else None,
        batch_size=options.forward_batch_size,
        num_workers=config.num_workers,
        max_train=options.max_train,
        max_test=options.max_test,
    )
    settings = ProbeSettings(epochs=options.epochs, seeds=numbers(options.seeds, "seeds") or ())
    taken = {
        "few_shot": {"shots": options.shots, "draws": options.draws},
        "knn": {"k": options.k},
        "linear": {"settings": settings},
        "robustness": {"sigmas": numbers(options.sigmas, "sigmas", float)},
    }
    chosen = {name: value for metric in metrics for name, value in taken.get(metric, {}).items()}
    table = evaluation.compare(
        *options.checkpoints,
        metrics=metrics,
        untrained=options.untrained,
        raw_pixels=options.raw_pixels,
        **chosen,
    )
    print(table)
    if options.output_dir is not None:
        print(f"Added to {table.save(options.output_dir)}")
    return 0
