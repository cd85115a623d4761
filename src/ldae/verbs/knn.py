"""`ldae knn CHECKPOINT`: weighted k-nearest-neighbour accuracy of a checkpoint's features."""

from typing import Any

from ldae.evaluation.features import extract_features
from ldae.evaluation.knn import knn_accuracy
from ldae.results import add_result
from ldae.verbs.inputs import open_inputs, table
from ldae.verbs.options.measure import KnnOptions


def run(options: KnnOptions) -> int:
    """Run the verb; the exit status is 0.

    Raises:
        ValueError: If an option, the checkpoint or the data is refused.
    """
    where: dict[str, Any] = {"layers": options.layers, "timesteps": options.timesteps, "noisy": options.noisy}
    inputs = open_inputs(options, **where, every=options.block_sweep)
    inputs.show_header("kNN")
    train, test = (
        extract_features(
            inputs.encoder,
            inputs.image_set(source, options.forward_batch_size).batches(),
            layers=inputs.layers,
            timesteps=inputs.timesteps,
            noisy=options.noisy,
            device=inputs.device,
            dtype=inputs.dtype,
        )
        for source in (inputs.train_source, inputs.test_source)
    )
    kind = "noisy" if options.noisy else "clean"
    rows = [["probe", "layer", "t", "input", "accuracy"]]
    for index, (layer, timestep) in enumerate(train.columns):
        data = (train.flat[:, index].to(inputs.device), train.classes, test.flat[:, index], test.classes)
        protocol = {
            "name": "knn",
            "k": options.k,
            "temperature": options.temperature,
            "similarity": "cosine",
            "layer": layer,
            "timestep": timestep,
            "input": kind,
            "pooling": inputs.encoder.pooling,
            "train_images": len(train.classes),
        }
        value = knn_accuracy(*data, k=options.k, temperature=options.temperature)
        result = inputs.result(value, protocol, n=len(test.classes))
        add_result(inputs.output_dir, result)
        shown = ["-" if place is None else str(place) for place in (layer, timestep)]
        rows.append([f"kNN k={options.k}", *shown, kind, f"{result.value:.2%}"])
    print(table(rows))
    print(f"Test accuracy of {len(test.classes):,} images from {len(train.classes):,} training images.")
    print(f"Added to {inputs.output_dir / 'results.json'}")
    return 0
