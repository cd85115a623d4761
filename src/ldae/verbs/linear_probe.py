"""`ldae linear_probe CHECKPOINT`: accuracy of linear probes over blocks and time steps, the papers' or converged."""

import argparse
import sys
from dataclasses import replace
from functools import partial

import torch

from ldae.evaluation.classifier import build_classifier, save_classifier
from ldae.evaluation.encoder import Layer
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.probing import PROBES, AdamProbes, ProbeResult, run_probe
from ldae.evaluation.protocol import PROTOCOLS, Protocol
from ldae.evaluation.rate_search import EXTENSION, MAX_LR_EXTENSIONS
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
LDAE_DEFAULTS = ProbeSettings(max_lr_extensions=MAX_LR_EXTENSIONS)
DDAE_DEFAULTS = ProbeSettings(epochs=15, batch_size=128, lr_multipliers=(20.0,), max_lr_extensions=MAX_LR_EXTENSIONS)


def main(argv: list[str]) -> int:
    """
    Run the verb.

    Args:
        argv: the command line without the program's name.

    Returns:
        The exit status, 0.
    """
    parser = probe_parser(
        "linear_probe",
        "Linear-probe a checkpoint: a linear layer on standardised, mean-pooled features of a frozen encoder, trained "
        "by Adam as in the papers or solved until it has converged. Blocks, time steps, learning rates and penalties are "
        "chosen on a tenth of the training images, never on the test set. Results go to results.json; the chosen probe "
        "is saved as an image classifier in linear_probe/.",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="paper",
        help="paper: features under random crop and flip, anew in each epoch, probed by Adam, with a converged "
        "logistic probe of features computed once beside it; cached: features computed once (default: paper)",
    )
    parser.add_argument(
        "--probe",
        choices=PROBES,
        help="of protocol cached and of --baselines. logistic: logistic regression solved until it has converged; adam: "
        "as the papers train it, which may not have converged; ridge: closed form (default: logistic; adam of protocol "
        "paper)",
    )
    parser.add_argument(
        "--epochs", type=int, help="Adam's passes over the training features (default: 90; 15 of a DDAE)"
    )
    parser.add_argument(
        "--batch_size", type=int, help="images of a step (default: 16384, less for small data sets; 128 of a DDAE)"
    )
    parser.add_argument(
        "--lr_multipliers",
        help="Adam's learning rates, times 1e-4 x batch / 256 (default: 1,10,100; 20 of a DDAE, which makes 1e-3). "
        f"Several are extended by factors of {EXTENSION:g}, at most {MAX_LR_EXTENSIONS} times at either end, until those "
        "chosen lie inside",
    )
    parser.add_argument("--seeds", help="seeds of Adam's probes (default: 0,1,2)")
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
    options = parse(parser, argv)
    scale = numbers(options.crop_scale, "crop_scale", float) or ()
    if len(scale) != 2:
        raise ValueError(f"crop_scale={options.crop_scale!r} is not understood; give two numbers, such as 0.08,1.")
    inputs = open_inputs(options)
    is_ddae = inputs.config.model_type == "ddae"
    probe = choose_probe(options)
    # Baselines are unlike in scale, so that each has its rate chosen among several.
    defaults = DDAE_DEFAULTS if is_ddae and not options.baselines else LDAE_DEFAULTS
    multipliers = defaults.lr_multipliers
    if options.lr_multipliers is not None:
        multipliers = numbers(options.lr_multipliers, "lr_multipliers", float) or ()
    settings = replace(
        defaults,
        epochs=defaults.epochs if options.epochs is None else options.epochs,
        batch_size=defaults.batch_size if options.batch_size is None else options.batch_size,
        lr_multipliers=multipliers,
        seeds=numbers("0,1,2" if options.seeds is None else options.seeds, "seeds") or (),
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
        return compare_with_baselines(inputs, options, probe, settings)
    inputs.show_header(f"Linear probe ({protocol.name} protocol)")
    results = _run(inputs, options, probe, protocol)
    _report(results, inputs)
    _save(results[0], inputs)
    return 0


def choose_probe(options: argparse.Namespace) -> str:
    """
    Choose the probe that the options ask for, and check that the others suit it.

    Raises:
        ValueError: If the protocol or an option of Adam's does not suit the probe.
    """
    by_epochs = options.protocol == "paper" and not options.baselines
    probe: str = options.probe or ("adam" if by_epochs else "logistic")
    if options.shots is not None:
        return probe
    if by_epochs and probe != "adam":
        raise ValueError(f"probe={probe} needs features that are computed once; add --protocol cached.")
    if probe != "adam":
        given = {name: getattr(options, name) for name in ("epochs", "batch_size", "lr_multipliers", "seeds")}
        given["batch_norm"] = None if options.batch_norm else "false"
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}={value} only applies with --probe adam; add that, or leave out --{name}.")
    return probe


def _run(inputs: ProbeInputs, options: argparse.Namespace, probe: str, protocol: Protocol) -> list[ProbeResult]:
    """Run the probe, and beside the paper's a converged one."""
    sources, reading = (inputs.train_source, inputs.test_source), reading_options(options, inputs)
    progress = partial(show_progress, epochs=protocol.settings.epochs)
    results = [run_probe(inputs.encoder, *sources, protocol, probe, on_epoch=progress, **reading)]
    if protocol.name == "paper":
        cached = replace(protocol, name="cached")
        results.append(run_probe(inputs.encoder, *sources, cached, "logistic", **reading))
    return results


def show_progress(done: int, epochs: int) -> None:
    """How many epochs are done, on a terminal."""
    if sys.stderr.isatty():
        print(f"\repoch {done}/{epochs}", end="\n" if done == epochs else "", file=sys.stderr, flush=True)


def _report(results: list[ProbeResult], inputs: ProbeInputs) -> None:
    """Print the table and add each row to results.json."""
    rows = [["probe", "layer", "t", "input", "accuracy", "+-", "held-out", "lr", "penalty"]]
    for result, index in ((found, index) for found in results for index in range(len(found.columns))):
        chosen, held_out = index == result.best, result.probes.held_out_score(index)
        details = {"chosen": chosen} | ({} if held_out is None else {"held_out_value": held_out})
        measured = result.result(index, **inputs.about, details=details)
        protocol = measured.protocol
        shown = ["-" if value is None else str(value) for value in (protocol["layer"], protocol["timestep"])]
        rows.append(
            [
                f"{protocol['name']} *" if chosen and len(result.columns) > 1 else protocol["name"],
                *shown,
                protocol["input"],
                f"{measured.value:.2%}",
                "-" if measured.stderr is None else f"{measured.stderr:.2%}",
                "-" if held_out is None else f"{held_out:.2%}",
                f"{protocol['learning_rate']:.2g}" if "learning_rate" in protocol else "-",
                f"{protocol['penalty']:.2g}" if "penalty" in protocol else "-",
            ]
        )
        add_result(inputs.output_dir, measured)
    print(table(rows))
    print(f"Test accuracy of {results[0].num_test:,} images.", end=" ")
    if isinstance(results[0].probes, AdamProbes):
        print(f"+- is the standard error over probe seeds {list(results[0].probes.seeds)}.", end="")
    print()
    if len(results[0].columns) > 1:
        print("* was chosen by the held-out tenth of the training images, not by the test set.")
    for warning in _warnings(results):
        print(warning)
    print(f"Added to {inputs.output_dir / 'results.json'}")


def _warnings(results: list[ProbeResult]) -> list[str]:
    """List what makes a number less than what its features hold."""
    described = [result.describe(index) for result in results for index in range(len(result.columns))]
    at_edge = sum(details.get("learning_rate_at_edge", False) for details in described)
    stopped = sum(not details.get("converged", True) for details in described)
    lines = []
    if at_edge:
        lines.append(
            f"Warning: {at_edge} chosen learning rates lie at the edge of the grid: these probes have not converged. "
            "Give more --lr_multipliers or --epochs, or compare by --protocol cached --probe logistic."
        )
    if stopped:
        lines.append(f"Warning: {stopped} logistic probes have not converged.")
    return lines


def _save(result: ProbeResult, inputs: ProbeInputs) -> None:
    """Save the chosen probe's first seed as an image classifier."""
    layer, timestep = result.columns[result.best]
    if layer is None or timestep is None:
        print("No classifier is saved: the model is neither an l-DAE nor a DDAE.")
        return
    if result.protocol.noisy:
        print("No classifier is saved: its input would be clean, and the probe's was noisy.")
        return
    folded = result.probes.folded(result.best)
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
