"""`ldae linear_probe CHECKPOINT --baselines` and `--shots`: an encoder and its baselines, under the same probe."""

from typing import Any

from ldae.evaluation.comparison import FEW_SHOT, compare_baselines
from ldae.evaluation.images import count_images
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.shared_work import is_main
from ldae.verbs.inputs import ProbeInputs, table
from ldae.verbs.options.measure import LinearProbeOptions


def compare_with_baselines(
    inputs: ProbeInputs, options: LinearProbeOptions, probe: str, settings: ProbeSettings
) -> int:
    """Print the encoder's accuracy beside those of the same network untrained, of raw pixels and of an l-DAE's mean
    PCA coefficients, and add them to results.json: by a linear probe, or by few-shot ridge probes where `shots` is
    given.

    Raises:
        ValueError: If more than one block or time step is asked for.
    """
    remedy = (
        "does not go with baselines or shots, which compare one block at one time step; give one, such as the winner "
        "of ldae grid_search."
    )
    choice: dict[str, Any] = {
        "layer": inputs.only("layers", remedy),
        "timestep": inputs.only("timesteps", remedy),
        "noisy": options.noisy,
    }
    train, test = (list(images.batches()) for images in inputs.image_sets(options.forward_batch_size))
    n = count_images(test)
    shared = {"layer": choice["layer"], "timestep": choice["timestep"], "input": "noisy" if options.noisy else "clean"}
    if options.shots is not None:
        inputs.show_header(f"Ridge probe of {options.shots} labels a class")
        probe = FEW_SHOT
    else:
        inputs.show_header(f"Linear probe ({probe}) of features computed once, without augmentation")
    compared = compare_baselines(
        inputs.encoder, train, test, probe, settings=settings, shots=options.shots or 5, draws=options.draws, **choice
    )
    if not is_main():
        return 0
    strength = {"adam": ("lr", "learning_rate"), FEW_SHOT: ("", "")}.get(probe, ("penalty", "penalty"))
    rows = [["features", "accuracy", "+-", *strength[:1]]]
    found = []
    for index, each in enumerate(compared):
        value = [] if probe == FEW_SHOT else [f"{each.protocol[strength[1]]:.2g}"]
        stderr = "-" if each.stderr is None else f"{each.stderr:.2%}"
        rows.append([each.name, f"{each.accuracy:.2%}", stderr, *value])
        preset = {} if probe == FEW_SHOT else {"preset": "baselines"}
        fields = {"stderr": each.stderr, "seeds": each.seeds, "n": n} | ({"checkpoint": each.name} if index else {})
        found.append(inputs.result(each.accuracy, {**preset, **each.protocol, **shared}, **fields))
    print(table([row[: len(rows[-1])] for row in rows]))
    if probe == FEW_SHOT:
        print(f"Test accuracy of {n:,} images; +- is the standard error over {options.draws} draws ", end="")
        print("of the labels, the same for all.", end=" ")
    elif probe == "adam":
        print(f"+- is the standard error over probe seeds {list(settings.seeds)}.", end=" ")
    inputs.record(*found)
    print(f"Added to {inputs.output_dir}/results.json")
    return 0
