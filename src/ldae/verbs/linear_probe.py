"""`ldae linear_probe CHECKPOINT`: accuracy of linear probes over blocks and time steps, the papers' or converged."""

import sys
from dataclasses import replace
from functools import partial

import torch

from ldae.evaluation.classifier import build_classifier, save_classifier
from ldae.evaluation.comparison import FEW_SHOT, compare_baselines
from ldae.evaluation.encoder import JoinedEncoder, Layer, name_layer
from ldae.evaluation.images import count_images
from ldae.evaluation.linear_probe import MAX_LR_EXTENSIONS, AdamProbes, ProbeSettings
from ldae.evaluation.probing import ProbeResult, run_probe
from ldae.evaluation.protocol import Protocol
from ldae.results import Result
from ldae.shared_work import is_main
from ldae.verbs.inputs import ProbeInputs, open_inputs, table
from ldae.verbs.options.measure import LinearProbeOptions


ADAM_OPTIONS = ("epochs", "batch_size", "lr_multipliers", "seeds")


def linear_probe(options: LinearProbeOptions) -> int:
    """Run `ldae linear_probe`."""
    probe = _choose_probe(options)
    inputs = open_inputs(options, noisy=options.noisy, every=options.block_sweep)
    paper = dict(inputs.encoder.paper_probe)
    crop = paper.pop("crop")
    if options.baselines:
        paper = {}  # baselines are unlike in scale, so that each has its rate chosen among several
    given = {name: getattr(options, name) for name in ADAM_OPTIONS if getattr(options, name) is not None}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    settings = ProbeSettings(**{**paper, **given}, batch_norm=options.batch_norm, max_lr_extensions=MAX_LR_EXTENSIONS)
    protocol = Protocol(
        name=options.protocol,
        layers=inputs.layers,
        timesteps=inputs.timesteps,
        noisy=options.noisy,
        crop=crop,
        crop_scale=options.crop_scale,
        horizontal_flip=options.horizontal_flip,
        settings=settings,
    )
    if options.baselines or options.shots is not None:
        _compare_with_baselines(inputs, options, probe, settings)
        return 0
    inputs.show_header(f"Linear probe ({protocol.name} protocol)")
    sources, reading = (inputs.train_source, inputs.test_source), inputs.reading(options)
    progress = partial(show_progress, epochs=settings.epochs)
    results = [run_probe(inputs.encoder, *sources, protocol, probe, on_epoch=progress, **reading)]
    if protocol.name == "paper":  # and beside it a converged probe
        results.append(run_probe(inputs.encoder, *sources, replace(protocol, name="cached"), "logistic", **reading))
    if is_main():
        _report(results, inputs)
        _save(results[0], inputs)
    return 0


def _choose_probe(options: LinearProbeOptions) -> str:
    """Choose the probe that the options ask for, and check that the others suit it.

    Raises:
        ValueError: If the protocol or an option of Adam's does not suit the probe.
    """
    by_epochs = options.protocol == "paper" and not options.baselines
    probe: str = options.probe or ("adam" if by_epochs else "logistic")
    if options.features and (options.shots is not None or options.baselines):
        raise ValueError(f"features={options.features} has no images for baselines or shots; leave it out.")
    given = {name: getattr(options, name) for name in ADAM_OPTIONS if getattr(options, name) is not None}
    given |= {} if options.batch_norm else {"batch_norm": "false"}
    if options.shots is not None:
        given |= {} if options.probe is None else {"probe": options.probe}
        for name, value in given.items():
            raise ValueError(f"{name}={value} does not go with --shots, whose probes are ridge; leave out --{name}.")
        return FEW_SHOT
    if by_epochs and probe != "adam":
        raise ValueError(f"probe={probe} needs features that are computed once; add --protocol cached.")
    if probe != "adam":
        for name, value in given.items():
            raise ValueError(f"{name}={value} only applies with --probe adam; add that, or leave out --{name}.")
    return probe


def _compare_with_baselines(
    inputs: ProbeInputs, options: LinearProbeOptions, probe: str, settings: ProbeSettings
) -> None:
    """Print the encoder's accuracy beside its baselines', by one probe or with `shots` by few-shot ridge probes."""
    remedy = (
        "does not go with baselines or shots, which compare one block at one time step; give one, such as the winner "
        "of ldae grid_search."
    )
    layer, timestep = inputs.only("layers", remedy), inputs.only("timesteps", remedy)
    train, test = (list(images.batches()) for images in inputs.image_sets(options.forward_batch_size))
    n = count_images(test)
    if options.shots is not None:
        inputs.show_header(f"Ridge probe of {options.shots} labels a class")
    else:
        inputs.show_header(f"Linear probe ({probe}) of features computed once, without augmentation")
    compared = compare_baselines(
        inputs.encoder,
        train,
        test,
        probe,
        settings=settings,
        shots=options.shots or 5,
        draws=options.draws,
        layer=layer,
        timestep=timestep,
        noisy=options.noisy,
        dtype=inputs.dtype,
    )
    if not is_main():
        return
    place = {"layer": layer, "timestep": timestep}
    if isinstance(inputs.encoder, JoinedEncoder):
        place["pooling"] = inputs.encoder.pooling
    chosen = {FEW_SHOT: None, "adam": "learning_rate"}.get(probe, "penalty")  # by held-out images, for each encoder
    rows = [["features", "accuracy", "+-"] + ([] if chosen is None else [chosen.replace("learning_rate", "lr")])]
    found = []
    for each in compared:
        row = [each.name, f"{each.accuracy:.2%}", "-" if each.stderr is None else f"{each.stderr:.2%}"]
        rows.append(row if chosen is None else [*row, f"{each.protocol[chosen]:.2g}"])
        own = {"input": "noisy" if each.noisy else "clean"}
        protocol = {**({} if chosen is None else {"preset": "baselines"}), **each.protocol, **place, **own}
        fields = {"stderr": each.stderr, "seeds": each.seeds, "n": n}
        if each is not compared[0]:
            fields["checkpoint"] = each.name
        found.append(inputs.result(each.accuracy, protocol, **fields))
    print(table(rows))
    if probe == FEW_SHOT:
        print(f"Test accuracy of {n:,} images; +- is the standard error over {options.draws} draws ", end="")
        print("of the labels, the same for all.", end=" ")
    elif probe == "adam":
        print(f"+- is the standard error over probe seeds {list(settings.seeds)}.", end=" ")
    inputs.record(*found)
    print(f"Added to {inputs.output_dir}/results.json")


def show_progress(done: int, epochs: int) -> None:
    """Show on a terminal how many epochs are done."""
    if sys.stderr.isatty():
        print(f"\repoch {done}/{epochs}", end="\n" if done == epochs else "", file=sys.stderr, flush=True)


def _report(results: list[ProbeResult], inputs: ProbeInputs) -> None:
    """Print the table, then add each row to results.json."""
    rows = [["probe", "layer", "t", "input", "accuracy", "+-", "held-out", "lr", "penalty"]]
    found: list[Result] = []
    for result, index in ((each, index) for each in results for index in range(len(each.columns))):
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
        found.append(measured)
    print(table(rows))
    print(f"Test accuracy of {results[0].num_test:,} images.", end=" ")
    if isinstance(results[0].probes, AdamProbes):
        print(f"+- is the standard error over probe seeds {list(results[0].probes.seeds)}.", end="")
    print()
    if len(results[0].columns) > 1:
        print("* was chosen by the held-out tenth of the training images, not by the test set.")
    for warning in _warnings(results):
        print(warning)
    inputs.record(*found)
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
        print("No classifier is saved: its encoder would be read after one layer of an l-DAE or a DDAE.")
        return
    if result.protocol.noisy:
        print("No classifier is saved: its input would be clean, and the probe's was noisy.")
        return
    folded = result.probes.folded(result.best)
    save_probe(inputs, *folded, layer=layer, timestep=timestep, folder="linear_probe")


def save_probe(
    inputs: ProbeInputs, weight: torch.Tensor, bias: torch.Tensor, *, layer: Layer, timestep: int, folder: str
) -> None:
    """Save a probe of one layer's features, `(K, C)` and `(K,)`, as an image classifier in the folder of results."""
    names = inputs.train_source.class_names or []
    names = names + [str(index) for index in range(len(names), len(bias))]
    classifier = build_classifier(inputs.checkpoint, weight, bias, layer=layer, timestep=timestep, class_names=names)
    save_classifier(classifier, inputs.output_dir / folder)
    print(f"Classifier ({name_layer(layer)} at t = {timestep}): {inputs.output_dir / folder}")
