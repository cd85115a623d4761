"""`ldae knn CHECKPOINT`: weighted k-nearest-neighbour accuracy of a checkpoint's features."""

from ldae.evaluation.features import extract_features
from ldae.evaluation.images import ImageSet
from ldae.evaluation.knn import knn_accuracy
from ldae.results import add_result
from ldae.verbs.probe_options import open_inputs, parse, probe_parser, table


def main(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: the command line without the program's name.

    Returns:
        The exit status, 0.
    """
    parser = probe_parser(
        "knn",
        "Classify test images by their nearest training images in feature space (cosine similarity, votes weighted by "
        "exp(similarity / temperature)). Nothing is trained and nothing chosen: each block and time step has its row.",
    )
    parser.add_argument("--k", type=int, default=20, help="neighbours that vote (default: 20)")
    parser.add_argument("--temperature", type=float, default=0.07, help="of the votes (default: 0.07)")
    options = parse(parser, argv)
    inputs = open_inputs(options)
    inputs.show_header("kNN")
    train, test = (
        extract_features(
            inputs.encoder,
            ImageSet(
                source,
                image_size=inputs.encoder.image_size,
                num_channels=inputs.encoder.num_channels,
                batch_size=options.forward_batch_size,
                num_workers=inputs.data.num_workers,
            ).batches(),
            layers=inputs.layers,
            timesteps=inputs.timesteps,
            noisy=options.noisy,
            device=inputs.device,
            dtype=inputs.dtype,
        )
        for source in (inputs.train_source, inputs.test_source)
    )
    scores = [
        knn_accuracy(
            train.flat[:, index].to(inputs.device),
            train.classes,
            test.flat[:, index],
            test.classes,
            k=options.k,
            temperature=options.temperature,
        )
        for index in range(len(train.columns))
    ]
    kind = "noisy" if options.noisy else "clean"
    rows = [["probe", "layer", "t", "input", "accuracy"]]
    for (layer, timestep), score in zip(train.columns, scores, strict=True):
        shown = ["-" if value is None else str(value) for value in (layer, timestep)]
        rows.append([f"kNN k={options.k}", *shown, kind, f"{score:.2%}"])
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
        add_result(inputs.output_dir, inputs.result(score, protocol, n=len(test.classes)))
    print(table(rows))
    print(f"Test accuracy of {len(test.classes):,} images from {len(train.classes):,} training images.")
    print(f"Added to {inputs.output_dir / 'results.json'}")
    return 0
