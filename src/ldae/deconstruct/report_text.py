"""The words of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldae.deconstruct.collect import Collection, Summary, VariantResults
from ldae.deconstruct.report_tables import fid_name, read_recipe
from ldae.deconstruct.trajectory import row_label, row_number, row_paper
from ldae.models.configuration_ldae import LDAEConfig
from ldae.reports.paper_figures import SETTING


PAPER_IMAGES = 512_466_800  # 400 epochs


def run_config(row: VariantResults) -> LDAEConfig | None:
    """Load the configuration of a variant's first finished run."""
    return None if row.first_run is None else LDAEConfig.from_pretrained(row.first_run)


def data_name(found: Collection) -> str:
    """Return the name of the runs' data set, without the folders of the machine that it was read on."""
    for result in (*found.rows, *found.sweep):
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
            text += f" Not run: {', '.join(f'{row_number(row)} ({row_label(row)})' for row in missing)}."
        lines.append(text)
    failures = [
        f"{result.variant.name}, seed {seed}: {error}"
        for result in (*found.rows, *found.sweep)
        for seed, error in result.failures.items()
    ]
    if failures:
        lines.append(f"Failed, to be tried again by the same command: {'; '.join(failures)}.")
    images = sorted({result.images for result in (*found.rows, *found.sweep) if result.images})
    config = next((c for c in map(run_config, (*found.rows, *found.sweep)) if c is not None), None)
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


def trajectory_caption(found: Collection) -> str:
    """Describe the chart of the trajectory, and how our bars were measured."""
    done = [row for row in found.rows if row.accuracy is not None]
    return (
        "As Figure 6 of the paper: each line changes the one above (12a and 12b change 12). The axes do not begin at "
        "zero. " + (accuracy_text(done) if done else "None of ours is measured yet.")
    )


def paper_notes(found: Collection) -> list[str]:
    """List where the paper contradicts itself about the rows shown."""
    steps = [step for step in map(row_paper, found.rows) if step is not None and step.note]
    notes = "; ".join(f"row {step.row.lstrip('0') or '0'}: {step.note}" for step in steps)
    return [f"(*) {notes}."] if notes else []


def fid_note(found: Collection) -> list[str]:
    """Name the feature extractors of our FID and of the paper's."""
    fids = [row.samples["fid"] for row in found.rows if "fid" in row.samples]
    if not fids:
        return []
    images = f"{fids[0].entry['n']:,} generated and {fids[0].entry['protocol']['reference_images']:,} real images"
    return [
        f"{fid_name(found)} compares the features of {extractor_names(found)} on {images}; the paper's FID-50K those "
        "of Inception on 50,000 generated images. The two do not compare."
    ]


def steps_note() -> str:
    """Explain the table of steps."""
    return (
        "The table has each step's change of accuracy at the searched point. Its standard error combines those of "
        "both rows over seeds: the root of the sum of their squares."
    )


def baselines_text(found: Collection) -> str:
    """Describe the baselines, and name the rows that are ahead of them."""
    best = max(found.baselines.values(), key=lambda summary: summary.mean)
    ahead = [row_number(row) for row in found.rows if row.accuracy is not None and row.accuracy.mean > best.mean]
    verdict = f"Rows ahead of all three: {', '.join(ahead)}." if ahead else "No row is ahead of all three."
    return (
        "The same network with random weights (its gates drawn at random too), the mean latents of the image, and its "
        f"raw pixels, under the same probe, on features computed once. The spread is over probe seeds. {verdict}"
    )


def samples_text(found: Collection) -> str:
    """Explain FID and KID, and why they do not compare with the paper's."""
    return (
        "l-DAE is made to learn features, not to generate: along the paper's path FID gets worse while accuracy does "
        f"not (Tab. 1). FID and KID compare features of {extractor_names(found)}; the paper's FID compares features "
        "of Inception on 50,000 images. Ours compare with each other only."
    )


def extractor_names(found: Collection) -> str:
    """List the networks whose features FID compares."""
    fids = [row.samples["fid"] for row in found.rows if "fid" in row.samples]
    return ", ".join(sorted({fid.entry["protocol"]["extractor"] for fid in fids}))


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
    done = [result for result in (*found.rows, *found.sweep) if result.accuracy is not None]
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
