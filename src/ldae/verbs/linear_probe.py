"""`ldae linear_probe CHECKPOINT`: linear-probe accuracy by the paper's protocol, over blocks and time steps."""

import sys
from typing import Any

import torch

from ldae.evaluation.classifier import build_classifier, save_classifier
from ldae.evaluation.features import Layer
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.protocols import PROTOCOLS, LinearProbeResult, Protocol, run_linear_probe
from ldae.results import add_result
from ldae.verbs.probe_baselines import compare_with_baselines
from ldae.verbs.probe_options import (
    ProbeInputs,
    add_batch_norm_option,
    add_memory_option,
    boolean,
    numbers,
    open_inputs,
    parse,
    probe_parser,
    reading_options,
    table,
)


# What either paper does: l-DAE's App. A, and 15 epochs of Adam at 1e-3 and batch 128 for a DDAE.
LDAE_DEFAULTS = ProbeSettings()
DDAE_DEFAULTS = ProbeSettings(epochs=15, batch_size=128, lr_multipliers=(20.0,))


def main(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: the command line without the program's name.

    Returns:
        The exit status: 0; it exits with 2 where an option, the checkpoint or the data is refused.
    """
    parser = probe_parser(
        "linear_probe",
        "Linear-probe a checkpoint: BatchNorm without parameters and a linear layer on mean-pooled features of a frozen "
        "encoder. Blocks, time steps and learning rates are chosen on a tenth of the training images, never on the test "
        "set. Results go to results.json; the chosen probe is saved as an image classifier in linear_probe/.",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="paper",
        help="paper: features under random crop and flip, anew in each epoch; cached: computed once (default: paper)",
    )
    parser.add_argument("--epochs", type=int, help="passes over the training features (default: 90; 15 of a DDAE)")
    parser.add_argument(
        "--batch_size", type=int, help="images of a step (default: 16384, less for small data sets; 128 of a DDAE)"
    )
    parser.add_argument(
        "--lr_multipliers",
        help="learning rates tried, times 1e-4 x batch / 256 (default: 1,10,100; 20 of a DDAE, which makes 1e-3)",
    )
    parser.add_argument("--seeds", default="0,1,2", help="probe seeds (default: 0,1,2)")
    parser.add_argument(
        "--crop_scale", default="0.08,1", help="area kept by an l-DAE's random crops (default: 0.08,1)"
    )
    parser.add_argument(
        "--baselines",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        help="instead, compare with the untrained network, raw pixels and mean PCA coefficients (features computed once)",
    )
    parser.add_argument(
        "--shots",
        type=int,
        help="instead, compare them by ridge probes of so many labels a class, all on the same draws of them",
    )
    parser.add_argument("--draws", type=int, default=20, help="of --shots: how often labels are drawn (default: 20)")
    parser.add_argument("--horizontal_flip", type=boolean, default=True, help="false for digits and letters")
    add_batch_norm_option(parser)
    add_memory_option(parser)
    try:
        options = parse(parser, argv)
        scale = numbers(options.crop_scale, "crop_scale", float) or ()
        if len(scale) != 2:
            raise ValueError(f"crop_scale={options.crop_scale!r} is not understood; give two numbers, such as 0.08,1.")
        inputs = open_inputs(options)
        is_ddae = inputs.config.model_type == "ddae"
        # Baselines are unlike in scale, so that each has its rate chosen among several.
        defaults = DDAE_DEFAULTS if is_ddae and not options.baselines else LDAE_DEFAULTS
        multipliers = defaults.lr_multipliers
        if options.lr_multipliers is not None:
            multipliers = numbers(options.lr_multipliers, "lr_multipliers", float) or ()
        settings = ProbeSettings(
            epochs=defaults.epochs if options.epochs is None else options.epochs,
            batch_size=defaults.batch_size if options.batch_size is None else options.batch_size,
            lr_multipliers=multipliers,
            seeds=numbers(options.seeds, "seeds") or (),
            batch_norm=options.batch_norm,
        )
        protocol = Protocol(
            name=options.protocol,
            layers=inputs.layers,
            timesteps=inputs.timesteps,
            noisy=options.noisy,
            crop="padded" if is_ddae else "resized",
            crop_scale=(scale[0], scale[1]),
            horizontal_flip=options.horizontal_flip,
            settings=settings,
        )
        if options.baselines or options.shots is not None:
            return compare_with_baselines(inputs, options, settings)
        inputs.show_header(f"Linear probe ({protocol.name} protocol)")
        result = run_linear_probe(
            inputs.model,
            inputs.train_source,
            inputs.test_source,
            protocol,
            **reading_options(options, inputs),
            on_epoch=lambda done: show_progress(done, settings.epochs),
        )
    except ValueError as error:
        parser.exit(2, f"ldae linear_probe: {error}\n")
    _report(result, inputs)
    _save(result, inputs)
    return 0


def show_progress(done: int, epochs: int) -> None:
    """How many epochs are done, on a terminal."""
    if sys.stderr.isatty():
        print(f"\repoch {done}/{epochs}", end="\n" if done == epochs else "", file=sys.stderr, flush=True)


def _report(result: LinearProbeResult, inputs: ProbeInputs) -> None:
    """Print the table and add each row to results.json."""
    seeds = list(result.protocol.settings.seeds)
    rows = [["probe", "layer", "t", "input", "accuracy", "+-", "held-out", "lr"]]
    for index, (layer, timestep) in enumerate(result.columns):
        value, stderr = result.score(index)
        details = result.describe(index)
        chosen = index == result.report.feature_index
        held_out = result.held_out(index)
        rows.append(
            [
                "linear *" if chosen and len(result.columns) > 1 else "linear",
                "-" if layer is None else str(layer),
                "-" if timestep is None else str(timestep),
                details["input"],
                f"{value:.2%}",
                "-" if stderr is None else f"{stderr:.2%}",
                "-" if held_out is None else f"{held_out:.2%}",
                f"{details['learning_rate']:.2g}",
            ]
        )
        entry: dict[str, Any] = {
            "metric": "accuracy",
            "value": value,
            "dataset": inputs.dataset_name,
            "split": inputs.test_split,
            "protocol": details,
            "seeds": seeds,
            "checkpoint": inputs.checkpoint_name,
            "n": result.num_test,
            "chosen": chosen,
        }
        if stderr is not None:
            entry["stderr"] = stderr
        if held_out is not None:
            entry["held_out_value"] = held_out
        add_result(inputs.output_dir, entry)
    print(table(rows))
    print(f"Test accuracy of {result.num_test:,} images; +- is the standard error over probe seeds {seeds}.")
    if len(result.columns) > 1:
        print("* was chosen by the held-out tenth of the training images, not by the test set.")
    print(f"Added to {inputs.output_dir / 'results.json'}")


def _save(result: LinearProbeResult, inputs: ProbeInputs) -> None:
    """Save the chosen probe's first seed as an image classifier."""
    layer, timestep = result.columns[result.report.feature_index]
    if layer is None or timestep is None:
        print("No classifier is saved: the model is neither an l-DAE nor a DDAE.")
        return
    if result.protocol.noisy:
        print("No classifier is saved: its input would be clean, and the probe's was noisy.")
        return
    folded = result.folded(result.report.feature_index)
    save_probe(inputs, *folded, layer=layer, timestep=timestep, folder="linear_probe")


def save_probe(
    inputs: ProbeInputs, weight: torch.Tensor, bias: torch.Tensor, *, layer: Layer, timestep: int, folder: str
) -> None:
    """Save a probe of one block's features, `(K, C)` and `(K,)`, as an image classifier in a folder of the results'."""
    names = inputs.train_source.class_names or []
    names = names + [str(index) for index in range(len(names), len(bias))]
    classifier = build_classifier(inputs.checkpoint, weight, bias, layer=layer, timestep=timestep, class_names=names)
    save_classifier(classifier, inputs.output_dir / folder)
    print(f"Classifier ({layer} at t = {timestep}): {inputs.output_dir / folder}")
