"""`ldae knn CHECKPOINT`: weighted k-nearest-neighbour accuracy of a checkpoint's features."""

from ldae.evaluation.knn import run_knn
from ldae.shared_work import is_main
from ldae.verbs.inputs import open_inputs, table
from ldae.verbs.options.measure import KnnOptions


def knn(options: KnnOptions) -> int:
    """Run `ldae knn`."""
    inputs = open_inputs(options, noisy=options.noisy, every=options.block_sweep)
    inputs.show_header("kNN")
    train, test = inputs.image_sets(options.forward_batch_size)
    results = run_knn(
        inputs.encoder,
        train.batches(),
        test.batches(),
        inputs.about,
        k=options.k,
        temperature=options.temperature,
        whiten=options.whiten,
        noisy=options.noisy,
        layers=inputs.layers,
        timesteps=inputs.timesteps,
        device=inputs.device,
        dtype=inputs.dtype,
    )
    if not is_main():
        return 0
    name = f"kNN k={options.k}" + (f", {options.whiten} whitened" if options.whiten is not None else "")
    rows = [["probe", "layer", "t", "input", "accuracy"]]
    for result in results:
        places = [result.protocol[name] for name in ("layer", "timestep")]
        shown = ["-" if place is None else str(place) for place in places]
        rows.append([name, *shown, result.protocol["input"], f"{result.value:.2%}"])
    print(table(rows))
    n, num_train = results[0].n, results[0].protocol["train_images"]
    print(f"Test accuracy of {n:,} images from {num_train:,} training images.")
    inputs.record(*results)
    print(f"Added to {inputs.output_dir / 'results.json'}")
    return 0
