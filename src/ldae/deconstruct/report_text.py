"""The words of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldae.deconstruct.collect import STEPS, Collection, Summary, VariantResults, read_recipe
from ldae.reports.paper_figures import SETTING


PAPER_IMAGES = 512_466_800  # 400 epochs


def data_name(found: Collection) -> str:
    """Return the name of the runs' data set, without the folders of the machine that it was read on."""
    for result in found.results:
        if result.first_run is not None:
            return Path(read_recipe(result.first_run)["data"]["dataset"].rstrip("/*")).name
    return Path(str(found.preset.sections["data"].get("dataset", "your data"))).name


def opening(found: Collection) -> list[str]:
    """Write the introduction: the subject, how much is measured, what failed, and how far it compares."""
    lines = [
        "The path of Chen, Liu, Xie and He, *Deconstructing Denoising Diffusion Models for Self-Supervised Learning* "
        "(arXiv 2401.14404), step by step, with the linear-probe accuracy of the encoder after each."
    ]
    if found.rows:
        missing = [row for row in found.rows if row.accuracy is None]
        text = f"{len(found.rows) - len(missing)} of {len(found.rows)} rows are measured."
        if missing:
            text += f" Not run: {', '.join(f'{row.number} ({row.label})' for row in missing)}."
        lines.append(text)
    failures = [
        f"{result.variant.name}, seed {seed}: {error}"
        for result in found.results
        for seed, error in result.failures.items()
    ]
    if failures:
        lines.append(f"Failed, to be tried again by the same command: {'; '.join(failures)}.")
    left_out = [
        f"{result.variant.name}, seed {seed} ({', '.join(STEPS[step] for step in steps)})"
        for result in found.results
        for seed, steps in result.left_out.items()
    ]
    if left_out:
        lines.append(f"Not measured with the settings used last, so not in the means: {'; '.join(left_out)}.")
    images = sorted({result.images for result in found.results if result.images})
    config = next((result.config for result in found.results if result.config is not None), None)
    if images and config is not None:
        seen = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
        lines.append(
            f"These budgets are far smaller than the paper's: each pre-training saw {seen} images of "
            f"{data_name(found)} at {config.image_size} x {config.image_size} with {config.num_hidden_layers} + "
            f"{config.decoder_num_hidden_layers} blocks of width {config.hidden_size}. The paper's setting is "
            f"{SETTING}. The levels do not compare; the direction of the steps may, where it is larger than the "
            "spread."
            if images[-1] < PAPER_IMAGES
            else f"Each pre-training saw {seen} images of {data_name(found)}; the paper's setting is {SETTING}."
        )
    return lines


def extractor_names(found: Collection) -> str:
    """List the networks whose features FID compares."""
    fids = [row.samples["fid"].entry for row in found.rows if "fid" in row.samples]
    return ", ".join(sorted({fid["protocol"]["extractor"] for fid in fids}))


def accuracy_text(results: Sequence[VariantResults], points: Mapping[Any, Summary] | None = None) -> str:
    """Describe protocol, seeds, test images, budget and machine of some accuracies in a sentence."""
    summaries = [r.accuracy for r in results if r.accuracy is not None] if points is None else list(points.values())
    if not summaries:
        return ""
    entry, protocol = summaries[0].entry, summaries[0].entry["protocol"]
    seeds = sorted({summary.seeds for summary in summaries})
    spread = "± is the standard error over seeds" if seeds[-1] > 1 else "so no spread is known"
    images = sorted({r.images for r in results if r.images})
    hardware = sorted({r.hardware for r in results if r.hardware})
    return (
        f"Ours: {_probe_words(protocol)}, {entry['n']:,} test images of {Path(entry['dataset']).name}; "
        f"{_from_to(seeds)} pre-training seed{'s' if seeds[-1] > 1 else ''} ({spread}), "
        f"{_from_to(images) if images else 'no'} images seen, {'; '.join(hardware)}."
    )


def how_measured(found: Collection, command: str) -> list[str]:
    """Describe the protocol in full, the cost, and the command."""
    done = [result for result in found.results if result.accuracy is not None]
    lines = []
    if done and done[0].accuracy is not None:
        entry = done[0].accuracy.entry
        protocol = {name: value for name, value in entry["protocol"].items() if value is not None and name != "study"}
        lines.append(f"Probe: {', '.join(f'{name} {_shown(value)}' for name, value in protocol.items())}.")
        by_adam = protocol["name"] == "linear"
        lines.append(
            f"Scored on {entry['n']:,} images of {Path(entry['dataset']).name} ({entry['split']})"
            f"{'; probe seeds ' + _shown(entry['seeds']) if by_adam else ''}. "
            f"The {'learning rate' if by_adam else 'penalty'} is chosen on images held out from the training set. "
            "Spread (±) is the standard error of the mean over pre-training seeds; each seed has a tokenizer of its "
            "own."
        )
        seconds = sum(result.seconds for result in done)
        hardware = sorted({result.hardware for result in done if result.hardware})
        lines.append(f"Pre-training took {seconds / 60:,.0f} minutes in all, on {'; '.join(hardware)}.")
    if command:
        lines.append(
            f"To repeat everything: `{command}`. For one row, add its `--rows`; the folder of each run is "
            "`rows/NAME/seed-S`, with its `recipe.yaml`, which `ldae pretrain --config` takes."
        )
    lines.append(f"The paper's figures: arXiv 2401.14404; {SETTING}.")
    return lines


def _probe_words(protocol: Mapping[str, Any]) -> str:
    """Describe a probe in a few words."""
    point = "clean input at its own t unless said"
    if protocol.get("point") == "searched":
        point = "clean input, at the block and time step that ridge probes choose on held-out training images"
    if protocol["name"] == "logistic":
        return f"converged logistic probe ({protocol['preset']} protocol, {point})"
    return f"linear probe by Adam ({protocol['preset']} protocol, {protocol['epochs']} epochs, {point})"


def _from_to(numbers: Sequence[int]) -> str:
    return " to ".join(f"{number:,}" for number in dict.fromkeys((numbers[0], numbers[-1])))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
