"""`ldae grid_search CHECKPOINT`: find the block and the time step with the best features, and make them the default."""

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldae.data import iterate_once
from ldae.evaluation.criteria import CRITERIA, MOST_IMAGES, score_cells
from ldae.evaluation.grid_search import (
    GridScore,
    best_score,
    grid_scores,
    heat_map,
    write_choice,
)
from ldae.evaluation.images import fixed_subset
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.probing import ProbeResult, run_probe
from ldae.evaluation.protocol import PROTOCOLS, Protocol
from ldae.results import add_result
from ldae.verbs.linear_probe import save_probe, show_progress
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


ACCURACY = "accuracy"
ADAM_DEFAULTS = {"epochs": 15, "batch_size": 128, "seeds": "0"}


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
        "Score every block at time steps over the whole schedule, and make the best the checkpoint's default in its "
        "config.json. A held-out tenth of the training images chooses; the test set is only reported. Without labels, "
        "give --criterion.",
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
        help="cached: features once; paper: under random crop and flip, anew in each epoch (default: cached)",
    )
    parser.add_argument(
        "--probe",
        choices=("ridge", "logistic", "adam"),
        help="ridge: closed form, in seconds; logistic: solved to convergence, in minutes; both with a penalty chosen for "
        "each cell; adam: trained for some epochs (default: ridge; adam with --protocol paper)",
    )
    parser.add_argument(
        "--criterion",
        choices=(ACCURACY, *CRITERIA),
        help="accuracy: of the probes; the others need no labels: "
        + "; ".join(f"{name}: {criterion.meaning}" for name, criterion in CRITERIA.items())
        + " (default: accuracy)",
    )
    parser.add_argument("--epochs", type=int, help="passes over the training features (default: 15)")
    parser.add_argument("--batch_size", type=int, help="images of a step (default: 128)")
    parser.add_argument(
        "--learning_rates",
        help="of Adam, at their peak; each cell takes its best (default: 1e-3,1e-2,1e-1; a DDAE's paper protocol 1e-3)",
    )
    parser.add_argument("--seeds", help="probe seeds (default: 0)")
    add_batch_norm_option(parser)
    add_memory_option(parser)
    parser.add_argument(
        "--horizontal_flip",
        type=boolean,
        help="mirror images too, not for digits and letters (default: true of paper; false of cached, which then needs one "
        "sweep and not two)",
    )
    parser.add_argument("--write_config", type=boolean, default=True, help="false: report only (default: true)")
    options = parse(parser, argv)
    if options.noisy not in ("false", "true", "both"):
        raise ValueError(f"noisy={options.noisy!r} is unknown; choose false, true or both.")
    noisy = {"false": (False,), "true": (True,), "both": (False, True)}[options.noisy]
    if options.probe is None:
        options.probe = "adam" if options.protocol == "paper" else "ridge"
    label_free = options.criterion not in (None, ACCURACY)
    if label_free and True in noisy:
        raise ValueError(
            f"noisy={options.noisy} only applies to probes; leave it out with --criterion {options.criterion}."
        )
    options.block_sweep = options.layers is None
    options.noisy = True in noisy  # for open_inputs, which refuses it for models that have no noise
    inputs = open_inputs(options, labelled=False)
    timesteps = numbers(options.timesteps, "timesteps") or inputs.config.search_timesteps
    if label_free:
        return _search_by_criterion(inputs, options, timesteps)
    for source in (inputs.train_source, inputs.test_source):
        if source.label_column is None:
            raise ValueError(
                f"{source.description} has no label column, which accuracy needs; name it with --label_column, or search "
                f"without labels by --criterion {', '.join(CRITERIA)}."
            )
    is_ddae = inputs.config.model_type == "ddae"
    protocol = Protocol(
        name=options.protocol,
        layers=inputs.layers,
        timesteps=timesteps,
        crop="padded" if is_ddae else "resized",
        horizontal_flip=options.protocol == "paper" if options.horizontal_flip is None else options.horizontal_flip,
        settings=_settings(options, rates="1e-3" if is_ddae and options.protocol == "paper" else "1e-3,1e-2,1e-1"),
    )
    inputs.show_header(
        f"Grid search ({options.probe} probes, {protocol.name} protocol), {len(inputs.layers or ())} blocks x {len(timesteps or ())} t"
    )
    sources, reading = (inputs.train_source, inputs.test_source), reading_options(options, inputs)
    reading["on_epoch"] = partial(show_progress, epochs=protocol.settings.epochs)
    results = [
        run_probe(inputs.encoder, *sources, replace(protocol, noisy=choice), options.probe, **reading)
        for choice in noisy
    ]
    scores = grid_scores(results)
    winner = best_score(scores)
    _report(results, scores, winner, inputs, options)
    _write(scores, inputs, options)
    _save(results, scores, inputs)
    return 0


def _settings(options: argparse.Namespace, rates: str) -> ProbeSettings:
    """How Adam probes train; refuses what ridge probes have no use for."""
    defaults = {**ADAM_DEFAULTS, "learning_rates": rates}
    given = {name: getattr(options, name) for name in defaults if getattr(options, name) is not None}
    if options.probe != "adam" and given:
        name, value = next(iter(given.items()))
        raise ValueError(f"{name}={value} only applies with --probe adam; {options.probe} probes have no epochs.")
    if options.probe != "adam" and not options.batch_norm:
        raise ValueError(
            f"batch_norm=false only applies with --probe adam; {options.probe} probes scale features themselves."
        )
    chosen: dict[str, Any] = defaults | given
    if chosen["batch_size"] < 1:
        raise ValueError(f"batch_size={chosen['batch_size']} is not possible; it must be positive.")
    return ProbeSettings(
        epochs=chosen["epochs"],
        batch_size=chosen["batch_size"],
        base_lr=256 / chosen["batch_size"],  # so that a multiplier is the rate itself
        lr_multipliers=numbers(chosen["learning_rates"], "learning_rates", float) or (),
        seeds=numbers(chosen["seeds"], "seeds") or (),
        batch_norm=options.batch_norm,
    )


def _report(
    results: list[ProbeResult],
    scores: list[GridScore],
    winner: GridScore,
    inputs: ProbeInputs,
    options: argparse.Namespace,
) -> None:
    """Print the table, draw the heat map and add every score to results.json."""
    rows = [["layer", "t", "input", "held-out", "accuracy", "+-"]]
    paper = inputs.config.paper_point
    for score in scores:
        rows.append(
            [
                f"{score.layer}{_marks(score, winner, paper)}",
                str(score.timestep),
                "noisy" if score.noisy else "clean",
                f"{score.held_out:.2%}",
                f"{score.test:.2%}",
                "-" if score.stderr is None else f"{score.stderr:.2%}",
            ]
        )
    cells = [(result, index) for result in results for index in range(len(result.columns))]
    for score, (result, index) in zip(scores, cells, strict=True):
        details = {
            "chosen": score is winner,
            "paper_point": (score.layer, score.timestep) == paper,
            "held_out_value": score.held_out,
        }
        add_result(inputs.output_dir, result.result(index, {"search": "grid"}, **inputs.about, details=details))
    print(table(rows))
    print("* was chosen by the held-out tenth of the training images, not by the test set; p is the paper's point.")
    _draw(heat_map(scores, winner, paper), inputs)


def _marks(score: GridScore, winner: GridScore, paper: tuple[Any, int]) -> str:
    """Return the marks of a cell in the table: `*` for the chosen one, `p` for the paper's point."""
    return (" *" if score is winner else "") + (" p" if (score.layer, score.timestep) == paper else "")


def _draw(figure: Figure, inputs: ProbeInputs) -> None:
    """Write the heat map, and say where it and the numbers are."""
    pictures = inputs.output_dir / "pictures"
    pictures.mkdir(exist_ok=True)
    FigureCanvasAgg(figure).print_png(pictures / "grid_search.png")
    print(f"Heat map: {pictures / 'grid_search.png'}; added to {inputs.output_dir / 'results.json'}")


def _search_by_criterion(inputs: ProbeInputs, options: argparse.Namespace, timesteps: tuple[int, ...]) -> int:
    """Search without labels: score the cells, report, and write the best into config.json."""
    name, c = options.criterion, inputs.encoder
    source = fixed_subset(inputs.train_source, MOST_IMAGES, seed=0)
    size: dict[str, Any] = {
        "image_size": c.image_size,
        "num_channels": c.num_channels,
        "num_workers": inputs.data.num_workers,
    }
    batches = list(iterate_once(source, **size, batch_size=256))
    layers = inputs.layers or tuple(inputs.encoder.search_layers)
    n = sum(len(batch.images) for batch in batches)
    print(f"Search by {name} ({CRITERIA[name].meaning}) of {n:,} images, {len(layers)} blocks x {len(timesteps)} t")
    found = score_cells(inputs.encoder, batches, [name], layers=layers, timesteps=timesteps)[name]
    scores = [
        GridScore(layer, t, False, value, value, None)
        for layer, values in zip(layers, found.tolist(), strict=True)
        for t, value in zip(timesteps, values, strict=True)
    ]
    winner, paper = best_score(scores), inputs.config.paper_point
    print(
        table(
            [
                ["layer", "t", name],
                *([f"{s.layer}{_marks(s, winner, paper)}", str(s.timestep), f"{s.held_out:.4g}"] for s in scores),
            ]
        )
    )
    print("* has the best criterion, p is the paper's point. No label was looked at.")
    for score in scores:
        protocol = {"name": name, "layer": score.layer, "timestep": score.timestep, "input": "clean", "search": "grid"}
        about = {"metric": name, "split": inputs.data.split, "n": n, "details": {"chosen": score is winner}}
        add_result(inputs.output_dir, inputs.result(score.held_out, protocol, **about))
    _draw(heat_map(scores, winner, paper, label=CRITERIA[name].meaning, scale=1), inputs)
    _write(scores, inputs, options)
    return 0


def _write(scores: list[GridScore], inputs: ProbeInputs, options: argparse.Namespace) -> None:
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


def _save(results: list[ProbeResult], scores: list[GridScore], inputs: ProbeInputs) -> None:
    """Save the best clean-input cell's probe as an image classifier."""
    if all(score.noisy for score in scores):
        print("No classifier is saved: its input would be clean, and these were noisy.")
        return
    best = best_score(scores, clean_only=True)
    cells = [(result, index) for result in results for index in range(len(result.columns))]
    result, index = cells[next(i for i, score in enumerate(scores) if score is best)]
    save_probe(inputs, *result.probes.folded(index), layer=best.layer, timestep=best.timestep, folder="grid_search")
