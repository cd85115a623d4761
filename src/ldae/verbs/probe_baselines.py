"""`ldae linear_probe CHECKPOINT --baselines` and `--shots`: an encoder beside what it must beat, under the same probe."""

import argparse
from typing import Any

from ldae.data import Batch, iterate_once
from ldae.evaluation.comparison import compare_few_shot, compare_linear
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.results import add_result
from ldae.verbs.probe_options import ProbeInputs, table


def compare_with_baselines(
    inputs: ProbeInputs, options: argparse.Namespace, probe: str, settings: ProbeSettings
) -> int:
    """
    Print the encoder's accuracy beside those of the same network untrained, of raw pixels and of an l-DAE's mean PCA
    coefficients, and add them to results.json: by a linear probe, or by few-shot ridge probes where `shots` is given.

    Raises:
        ValueError: where more than one block or time step is asked for, or a number of shots or draws is not possible.
    """
    for name, chosen in (("layers", inputs.layers), ("timesteps", inputs.timesteps)):
        if chosen is not None and len(chosen) > 1:
            raise ValueError(
                f"{name}={','.join(map(str, chosen))} is not possible with baselines or shots, which compare one block at "
                "one time step; give one, such as the winner of ldae grid_search."
            )
    if options.draws < 1:
        raise ValueError(f"draws={options.draws} is not possible; give 1 or more.")
    choice: dict[str, Any] = {
        "layer": inputs.layers and inputs.layers[0],
        "timestep": inputs.timesteps and inputs.timesteps[0],
        "noisy": options.noisy,
    }
    size: dict[str, Any] = {"image_size": inputs.encoder.image_size, "num_channels": inputs.encoder.num_channels}
    train, test = (
        list(iterate_once(source, **size, batch_size=options.forward_batch_size))
        for source in (inputs.train_source, inputs.test_source)
    )
    shared = {"layer": choice["layer"], "timestep": choice["timestep"], "input": "noisy" if options.noisy else "clean"}
    if options.shots is not None:
        return _few_shot(inputs, options, train, test, choice, shared)
    inputs.show_header(f"Linear probe ({probe}) of features computed once, without augmentation")
    rows = [["features", "accuracy", "+-", "lr" if probe == "adam" else "penalty"]]
    seeds = settings.seeds if probe == "adam" else 0
    for index, c in enumerate(compare_linear(inputs.encoder, train, test, probe, settings, **choice)):
        strength = c.protocol["learning_rate" if probe == "adam" else "penalty"]
        rows.append([c.name, *_shown(c.accuracy, c.stderr), f"{strength:.2g}"])
        protocol = {"preset": "baselines", **c.protocol, **shared}
        _record(inputs, test, protocol, c.name if index else None, c.accuracy, c.stderr, seeds)
    print(table(rows))
    if probe == "adam":
        print(f"+- is the standard error over probe seeds {list(settings.seeds)}.", end=" ")
    print(f"Added to {inputs.output_dir}/results.json")
    return 0


def _few_shot(
    inputs: ProbeInputs,
    options: argparse.Namespace,
    train: list[Batch],
    test: list[Batch],
    choice: dict[str, Any],
    shared: dict[str, Any],
) -> int:
    shots, draws = options.shots, options.draws
    compared = compare_few_shot(inputs.encoder, train, test, shots=shots, draws=draws, knn=False, **choice)
    inputs.show_header(f"Ridge probe of {shots} labels a class")
    rows = [["features", "accuracy", "+-"]]
    protocol = {"name": "ridge", "labels_per_class": shots, "draws": draws, "penalty": "leave-one-out", **shared}
    for index, c in enumerate(compared):
        rows.append([c.name, *_shown(c.few_shot, c.few_shot_stderr)])
        _record(inputs, test, protocol, c.name if index else None, c.few_shot, c.few_shot_stderr, 0)
    print(table(rows))
    print(
        f"Test accuracy of {sum(len(batch.images) for batch in test):,} images; +- is the standard error over {draws} draws "
        f"of the labels, the same for all. Added to {inputs.output_dir}/results.json"
    )
    return 0


def _shown(value: float, stderr: float | None) -> tuple[str, str]:
    return f"{value:.2%}", "-" if stderr is None else f"{stderr:.2%}"


def _record(
    inputs: ProbeInputs,
    test: list[Batch],
    protocol: dict[str, Any],
    baseline: str | None,
    value: float,
    stderr: float | None,
    seeds: Any,
) -> None:
    about = {} if baseline is None else {"checkpoint": baseline}
    n = sum(len(batch.images) for batch in test)
    add_result(inputs.output_dir, inputs.result(value, protocol, stderr=stderr, n=n, seeds=seeds, **about))
