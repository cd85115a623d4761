"""`ldae grid_search CHECKPOINT`: find the layer and the time step with the best features, for the configuration."""

from dataclasses import replace
from functools import partial
from typing import Any

from ldae.evaluation.criteria import CRITERIA, MOST_IMAGES
from ldae.evaluation.encoder import name_layer
from ldae.evaluation.images import count_images, fixed_subset
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.probing import ProbeResult, run_probe
from ldae.evaluation.protocol import Protocol
from ldae.evaluation.search import (
    GridScore,
    best_score,
    grid_scores,
    search_by_criterion,
    write_choice,
)
from ldae.reports.layer_maps import heat_map
from ldae.shared_work import is_main
from ldae.verbs.inputs import ProbeInputs, open_inputs, table
from ldae.verbs.linear_probe import save_probe, show_progress
from ldae.verbs.options.measure import GridSearchOptions


ACCURACY = "accuracy"
ADAM_DEFAULTS: dict[str, Any] = {"epochs": 15, "batch_size": 128, "seeds": [0]}
RATES, PAPER_RATE = [1e-3, 1e-2, 1e-1], [1e-3]


def grid_search(options: GridSearchOptions) -> int:
    """Run `ldae grid_search`."""
    noisy = {"false": (False,), "true": (True,), "both": (False, True)}[options.noisy]
    probe = options.probe or ("adam" if options.protocol == "paper" else "ridge")
    label_free = options.criterion not in (None, ACCURACY)
    if label_free:
        _refuse_probes(options)
    inputs = open_inputs(options, every=not options.layers, labelled=False)
    timesteps = inputs.timesteps if options.timesteps else inputs.search_timesteps
    if label_free:
        return _search_by_criterion(inputs, options, timesteps or ())
    for source in (inputs.train_source, inputs.test_source):
        if source.label_column is None:
            raise ValueError(
                f"{source.description} has no label column, which accuracy needs; name it with --label_column, or "
                f"search without labels by --criterion {', '.join(CRITERIA)}."
            )
    paper = inputs.encoder.paper_probe
    protocol = Protocol(
        name=options.protocol,
        layers=inputs.layers,
        timesteps=timesteps,
        crop=paper["crop"],
        horizontal_flip=options.protocol == "paper" if options.horizontal_flip is None else options.horizontal_flip,
        settings=_settings(
            options, probe, PAPER_RATE if "lr_multipliers" in paper and options.protocol == "paper" else RATES
        ),
    )
    rates = protocol.settings.lr_multipliers
    if probe == "adam" and len(inputs.layers or ()) * len(timesteps or ()) * len(rates) == 1:
        raise ValueError("a grid needs more than one block, time step or learning rate to choose among.")
    inputs.show_header(
        f"Grid search ({probe} probes, {protocol.name} protocol), {len(inputs.layers or ())} blocks x "
        f"{len(timesteps or ())} t"
    )
    sources, reading = (inputs.train_source, inputs.test_source), inputs.reading(options)
    reading["on_epoch"] = partial(show_progress, epochs=protocol.settings.epochs)
    results = [
        run_probe(inputs.encoder, *sources, replace(protocol, noisy=choice), probe, **reading) for choice in noisy
    ]
    if not is_main():
        return 0
    scores = grid_scores(results)
    winner = best_score(scores)
    _report(results, scores, winner, inputs)
    _write(scores, inputs, options)
    _save(results, scores, inputs)
    return 0


def _refuse_probes(options: GridSearchOptions) -> None:
    """Refuse what only probes take in a search by a criterion, which has none."""
    given = {name: getattr(options, name) for name in ("features", "probe", "horizontal_flip", *ADAM_DEFAULTS)}
    given["learning_rates"] = options.learning_rates
    given["noisy"] = None if options.noisy == "false" else options.noisy
    given["protocol"] = None if options.protocol == "cached" else options.protocol
    given["batch_norm"] = None if options.batch_norm else "false"
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name}={value} only applies to probes; leave it out with --criterion {options.criterion}."
            )


def _settings(options: GridSearchOptions, probe: str, rates: list[float]) -> ProbeSettings:
    """Collect how Adam's probes train; refuse it for the other probes."""
    defaults: dict[str, Any] = {**ADAM_DEFAULTS, "learning_rates": rates}
    given = {name: getattr(options, name) for name in defaults if getattr(options, name) is not None}
    if probe != "adam" and given:
        name, value = next(iter(given.items()))
        raise ValueError(f"{name}={value} only applies with --probe adam; {probe} probes have no epochs.")
    if probe != "adam" and not options.batch_norm:
        raise ValueError(f"batch_norm=false only applies with --probe adam; {probe} probes scale features themselves.")
    chosen = defaults | given
    return ProbeSettings(
        epochs=chosen["epochs"],
        batch_size=chosen["batch_size"],
        base_lr=256 / chosen["batch_size"],  # so that a multiplier is the rate itself
        lr_multipliers=tuple(chosen["learning_rates"]),
        seeds=tuple(chosen["seeds"]),
        batch_norm=options.batch_norm,
    )


def _report(
    results: list[ProbeResult],
    scores: list[GridScore],
    winner: GridScore,
    inputs: ProbeInputs,
) -> None:
    """Print the table, add every score to results.json and draw the heat map."""
    rows = [["layer", "t", "input", "held-out", "accuracy", "+-"]]
    paper = inputs.encoder.paper_point
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
    print(table(rows))
    legend = "* was chosen by the held-out tenth of the training images, not by the test set"
    print(f"{legend}{_paper_legend(scores, paper)}.")
    cells = [(result, index) for result in results for index in range(len(result.columns))]
    found = []
    for score, (result, index) in zip(scores, cells, strict=True):
        details = {
            "chosen": score is winner,
            "paper_point": (score.layer, score.timestep) == paper,
            "held_out_value": score.held_out,
        }
        found.append(result.result(index, {"search": "grid"}, **inputs.about, details=details))
    inputs.record(*found)
    inputs.draw("Heat map", grid_search=heat_map(scores, winner, paper))


def _marks(score: GridScore, winner: GridScore, paper: tuple[Any, int]) -> str:
    """Return the marks of a cell in the table: `*` for the chosen one, `p` for the paper's point."""
    return (" *" if score is winner else "") + (" p" if (score.layer, score.timestep) == paper else "")


def _paper_legend(scores: list[GridScore], paper: tuple[Any, int]) -> str:
    """Explain `p` where a cell of the table has it."""
    shown = any((score.layer, score.timestep) == paper for score in scores)
    return "; p is the paper's point (of a DDAE, the checkpoint's own)" if shown else ""


def _search_by_criterion(inputs: ProbeInputs, options: GridSearchOptions, timesteps: tuple[int, ...]) -> int:
    """Search without labels: score the cells, report, and write the best into config.json."""
    name: str = options.criterion or ACCURACY
    source = fixed_subset(inputs.train_source, MOST_IMAGES, seed=0)
    batches = list(inputs.image_set(source, options.forward_batch_size).batches())
    layers = inputs.layers or tuple(inputs.encoder.search_layers)
    n = count_images(batches)
    print(f"Search by {name} ({CRITERIA[name].meaning}) of {n:,} images, {len(layers)} blocks x {len(timesteps)} t")
    scores = search_by_criterion(
        inputs.encoder, batches, name, layers=layers, timesteps=timesteps, device=inputs.device, dtype=inputs.dtype
    )
    if not is_main():
        return 0
    winner, paper = best_score(scores), inputs.encoder.paper_point
    print(
        table(
            [
                ["layer", "t", CRITERIA[name].metric],
                *([f"{s.layer}{_marks(s, winner, paper)}", str(s.timestep), f"{s.held_out:.4g}"] for s in scores),
            ]
        )
    )
    print(f"* has the best criterion{_paper_legend(scores, paper)}. No label was looked at.")
    measured = []
    for score in scores:
        protocol = {"name": name, "layer": score.layer, "timestep": score.timestep, "input": "clean", "search": "grid"}
        about = {
            "metric": CRITERIA[name].metric,
            "split": inputs.data.split,
            "n": n,
            "details": {"chosen": score is winner},
        }
        measured.append(inputs.result(score.held_out, protocol, **about))
    inputs.record(*measured)
    figure = heat_map(scores, winner, paper, label=CRITERIA[name].meaning, scale=1)
    inputs.draw("Heat map", grid_search=figure)
    _write(scores, inputs, options)
    return 0


def _write(scores: list[GridScore], inputs: ProbeInputs, options: GridSearchOptions) -> None:
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
        print(f"config.json: features are read after {name_layer(best.layer)} at t = {best.timestep} from now on.")


def _save(results: list[ProbeResult], scores: list[GridScore], inputs: ProbeInputs) -> None:
    """Save the best clean-input cell's probe as an image classifier."""
    if all(score.noisy for score in scores):
        print("No classifier is saved: its input would be clean, and these were noisy.")
        return
    best = best_score(scores, clean_only=True)
    cells = [(result, index) for result in results for index in range(len(result.columns))]
    result, index = cells[next(i for i, score in enumerate(scores) if score is best)]
    save_probe(inputs, *result.probes.folded(index), layer=best.layer, timestep=best.timestep, folder="grid_search")
