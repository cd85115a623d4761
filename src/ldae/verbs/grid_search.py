"""`ldae grid_search CHECKPOINT`: linear probes of every block and time step at once; the winner becomes the default."""

from dataclasses import replace
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg

from ldae.evaluation.grid_search import GridScore, best_score, grid_scores, heat_map, write_choice
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.protocols import PROTOCOLS, LinearProbeResult, Protocol, run_linear_probe
from ldae.results import add_result
from ldae.verbs.linear_probe import save_probe, show_progress
from ldae.verbs.probe_options import ProbeInputs, boolean, numbers, open_inputs, parse, probe_parser, table


TIMESTEPS = {"ldae": "0,10,20,40,80", "ddae": "1,11,21"}  # the two papers' grids, of 1000


def main(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: the command line without the program's name.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    parser = probe_parser(
        "grid_search",
        "Linear-probe every block at several time steps, all probes trained at once, and make the best the checkpoint's "
        "default in its config.json. A tenth of the training images chooses; the test set is only reported.",
    )
    parser.set_defaults(noisy="false")
    for action in parser._actions:
        if action.dest == "noisy":
            action.type, action.help = str, "false, true, or both: corrupt the input at t (default: false)"
        if action.dest == "block_sweep":
            action.help = "all blocks, which is the default without --layers"
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="cached",
        help="cached: features once; paper: crop and flip each epoch",
    )
    parser.add_argument("--epochs", type=int, default=15, help="passes over the training features (default: 15)")
    parser.add_argument("--batch_size", type=int, default=128, help="images of a step (default: 128)")
    parser.add_argument(
        "--learning_rates", default="1e-3,1e-2,1e-1", help="of AdamW, at their peak; each cell takes its best"
    )
    parser.add_argument("--seeds", default="0", help="probe seeds (default: 0)")
    parser.add_argument("--horizontal_flip", type=boolean, default=True, help="false for digits and letters")
    parser.add_argument("--write_config", type=boolean, default=True, help="false: report only (default: true)")
    options = parse(parser, argv)
    if options.noisy not in ("false", "true", "both"):
        raise ValueError(f"noisy={options.noisy!r} is unknown; choose false, true or both.")
    noisy = {"false": (False,), "true": (True,), "both": (False, True)}[options.noisy]
    options.block_sweep = options.layers is None
    options.noisy = True in noisy  # for open_inputs, which refuses it for models that have no noise
    inputs = open_inputs(options)
    rates = numbers(options.learning_rates, "learning_rates", float) or ()
    settings = ProbeSettings(
        epochs=options.epochs,
        batch_size=options.batch_size,
        base_lr=256 / options.batch_size,  # so that a multiplier is the rate itself
        lr_multipliers=rates,
        seeds=numbers(options.seeds, "seeds") or (),
    )
    timesteps = numbers(options.timesteps or TIMESTEPS[inputs.config.model_type], "timesteps")
    protocol = Protocol(
        name=options.protocol,
        layers=inputs.layers,
        timesteps=timesteps,
        horizontal_flip=options.horizontal_flip,
        settings=settings,
    )
    inputs.show_header(
        f"Grid search ({protocol.name} protocol), {len(inputs.layers or ())} blocks x {len(timesteps or ())} t"
    )
    results = [_run(inputs, options, replace(protocol, noisy=choice)) for choice in noisy]
    scores = grid_scores(results)
    winner = best_score(scores)
    _report(results, scores, winner, inputs)
    _write(scores, inputs, options)
    _save(results, scores, inputs)
    return 0


def _run(inputs: ProbeInputs, options: Any, protocol: Protocol) -> LinearProbeResult:
    return run_linear_probe(
        inputs.model,
        inputs.train_source,
        inputs.test_source,
        protocol,
        decode_size=inputs.data.decode_size,
        batch_size=options.forward_batch_size,
        num_workers=inputs.data.num_workers,
        device=inputs.device,
        dtype=inputs.dtype,
        on_epoch=lambda done: show_progress(done, protocol.settings.epochs),
    )


def _report(results: list[LinearProbeResult], scores: list[GridScore], winner: GridScore, inputs: ProbeInputs) -> None:
    """Print the table, draw the heat map and add every score to results.json."""
    rows = [["layer", "t", "input", "held-out", "accuracy", "+-"]]
    for score in scores:
        rows.append(
            [
                f"{score.layer}{' *' if score is winner else ''}",
                str(score.timestep),
                "noisy" if score.noisy else "clean",
                f"{score.held_out:.2%}",
                f"{score.test:.2%}",
                "-" if score.stderr is None else f"{score.stderr:.2%}",
            ]
        )
    described = [(result, result.describe(i)) for result in results for i in range(len(result.columns))]
    for score, (result, details) in zip(scores, described, strict=True):
        entry: dict[str, Any] = {
            "metric": "accuracy",
            "value": score.test,
            "dataset": inputs.dataset_name,
            "split": inputs.test_split,
            "protocol": {**details, "search": "grid"},
            "seeds": list(result.protocol.settings.seeds),
            "checkpoint": inputs.checkpoint_name,
            "n": result.num_test,
            "chosen": score is winner,
            "held_out_value": score.held_out,
        }
        add_result(inputs.output_dir, entry if score.stderr is None else {**entry, "stderr": score.stderr})
    print(table(rows))
    print("* was chosen by the held-out tenth of the training images, not by the test set.")
    pictures = inputs.output_dir / "pictures"
    pictures.mkdir(exist_ok=True)
    FigureCanvasAgg(heat_map(scores, winner)).print_png(pictures / "grid_search.png")
    print(f"Heat map: {pictures / 'grid_search.png'}; added to {inputs.output_dir / 'results.json'}")


def _write(scores: list[GridScore], inputs: ProbeInputs, options: Any) -> None:
    """Make the best clean-input choice the default; a default input is clean."""
    if not options.write_config:
        return
    if all(score.noisy for score in scores):
        print("config.json stays as it is: a default input is clean, and these were noisy.")
    elif inputs.checkpoint_name != ".":
        print(f"config.json stays as it is: results go to {inputs.output_dir}, not to the checkpoint's own folder.")
    else:
        best = best_score(scores, clean_only=True)
        write_choice(inputs.output_dir, best.layer, best.timestep)
        print(f"config.json: features are read after {best.layer} at t = {best.timestep} from now on.")


def _save(results: list[LinearProbeResult], scores: list[GridScore], inputs: ProbeInputs) -> None:
    """Save the best clean-input cell's probe as an image classifier."""
    if all(score.noisy for score in scores):
        print("No classifier is saved: its input would be clean, and these were noisy.")
        return
    best = best_score(scores, clean_only=True)
    cells = [(result, index) for result in results for index in range(len(result.columns))]
    result, index = cells[next(i for i, score in enumerate(scores) if score is best)]
    save_probe(inputs, *result.folded(index), layer=best.layer, timestep=best.timestep, folder="grid_search")
