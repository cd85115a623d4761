"""Write report.md and report.html of an output folder: the paper's figures and tables, ours beside the paper's."""

from pathlib import Path

from safetensors import safe_open

from ldae.deconstruct import figures
from ldae.deconstruct.collect import Collection, VariantResults, collect
from ldae.deconstruct.preset import Preset
from ldae.deconstruct.report_tables import (
    baselines_table,
    dimensions_table,
    fid_name,
    samples_table,
    steps_table,
    sweep_table,
    tokenizers_table,
    trajectory_table,
)
from ldae.deconstruct.report_text import accuracy_text, data_name, extractor_names, how_measured, opening
from ldae.deconstruct.samples import SAMPLES_PICTURE
from ldae.deconstruct.trajectory import count_steps, trajectory_steps
from ldae.files import write_whole
from ldae.reports.document import Picture, Section, render_html, render_markdown, save_figure
from ldae.reports.paper_figures import BY_BLOCK_SOURCE, BY_DIMENSION_NOTES, BY_DIMENSION_SOURCE, BY_TIMESTEP_SOURCE


SHOWN_ROW = "12"  # the row whose noise and denoising are shown; if it is not finished, the last one that is
GROUPS = ("05", "08", "12a")  # first rows of Sec. 4.2, 4.3 and what comes after them
FILTER_ROWS = ("05", "06", "07")  # VAE, AE, PCA (Fig. 4)


def write_report(preset: Preset, output_dir: Path, *, command: str = "") -> Path:
    """Write `report.md`, `report.html` and `figures/` for what an output folder holds so far.

    Args:
        preset ([`Preset`]): The rows to show; those that are missing are listed as not run.
        output_dir (`Path`): The output folder of `deconstruct`.
        command (`str`): The launch's command line, without rows and seeds.

    Returns:
        `Path`: The HTML file, which contains its pictures.
    """
    found = collect(preset, output_dir)
    title = f"From DiT to l-DAE on {data_name(found)}"
    sections = [
        Section("", opening(found)),
        Section("The trajectory", _trajectory(found)),
        Section("Accuracy by latent dimension", _dimensions(found)),
        Section("What an encoder must beat", _baselines(found)),
        Section("Where and when features are read", _studies(found)),
        Section("Tokenizers", _tokenizers(found)),
        Section("Noise", _noise(found)),
        Section("Denoising", _denoising(found)),
        Section("Samples", _samples(found)),
        Section("How it was measured", how_measured(found, command)),
    ]
    sections = [section for section in sections if section.blocks]
    write_whole(output_dir / "report.md", render_markdown(title, sections, output_dir))
    write_whole(output_dir / "report.html", render_html(title, sections))
    return output_dir / "report.html"


def _trajectory(found: Collection) -> list:
    if not found.rows:
        return []
    bars = [(row.number, row.label, row.accuracy, row.paper) for row in found.rows]
    searched = any(row.searched for row in found.rows)
    at_paper = [row.at_paper if searched else None for row in found.rows]
    groups = [i for i, row in enumerate(found.rows) if i and row.variant.key in GROUPS]
    chart = save_figure(figures.trajectory_figure(bars, groups, at_paper), found.folder / "figures" / "trajectory.svg")
    done = [row for row in found.rows if row.accuracy is not None]
    caption = (
        "As Figure 6 of the paper: each line changes the one above (12a and 12b change 12). The axes do not begin at "
        f"zero. {accuracy_text(done) if done else 'None of ours is measured yet.'}"
    )
    blocks: list = [
        Picture(chart, "Bars of linear-probe accuracy by step, ours and the paper's", caption),
        trajectory_table(found),
    ]
    notes = [f"row {row.number}: {row.paper.note}" for row in found.rows if row.paper is not None and row.paper.note]
    if notes:
        blocks.append(f"(*) {'; '.join(notes)}.")
    fids = [row.samples["fid"].entry for row in found.rows if "fid" in row.samples]
    if fids:
        blocks.append(
            f"{fid_name(found)} compares the features of {extractor_names(found)} on {fids[0]['n']:,} generated and "
            f"{fids[0]['protocol']['reference_images']:,} real images; the paper's FID-50K those of Inception on "
            "50,000 generated images. The two do not compare."
        )
    steps = trajectory_steps(found)
    counted = count_steps(steps)
    if counted:
        blocks.append(
            f"*{counted}* The table has each step's change of accuracy at the searched point. Its standard error "
            "combines those of both rows over seeds: the root of the sum of their squares."
        )
        blocks.append(steps_table(steps))
    return blocks


def _dimensions(found: Collection) -> list:
    if not found.sweep:
        return []
    done = [result for result in found.sweep if result.accuracy is not None]
    blocks: list = []
    if done and done[0].config is not None:
        chart = figures.dimensions_figure(done, done[0].config.patch_dim)
        path = save_figure(chart, found.folder / "figures" / "dimensions.svg")
        paper = f"Paper: {BY_DIMENSION_SOURCE}. {' '.join(BY_DIMENSION_NOTES)}"
        caption = f"As Table 2 and Figure 5. {accuracy_text(done)} {paper}"
        blocks.append(Picture(path, "Accuracy against latent dimension, by tokenizer, ours and the paper's", caption))
    return [*blocks, dimensions_table(found)]


def _baselines(found: Collection) -> list:
    if not found.baselines:
        return []
    best = max(summary.mean for summary in found.baselines.values())
    ahead = [row.number for row in found.rows if row.accuracy is not None and row.accuracy.mean > best]
    verdict = f"Rows ahead of all three: {', '.join(ahead)}." if ahead else "No row is ahead of all three."
    text = (
        "The same network with random weights (its gates drawn at random too), the mean latents of the image, and its "
        f"raw pixels, under the same probe, on features computed once. The spread is over probe seeds. {verdict}"
    )
    return [text, baselines_table(found)]


def _studies(found: Collection) -> list:
    blocks: list = []
    for row in found.rows:
        if row.config is None:
            continue
        stem, total = row.variant.name, row.config.total_num_hidden_layers
        if row.blocks:
            chart = figures.blocks_figure(row.blocks, row.config.num_hidden_layers, total)
            path = save_figure(chart, found.folder / "figures" / f"blocks-{stem}.svg")
            caption = (
                f"Row {row.number}: where the encoder is cut, after training ({BY_BLOCK_SOURCE}). "
                f"{accuracy_text([row], row.blocks)}"
            )
            blocks.append(Picture(path, "Accuracy against the block that features are read after", caption))
            blocks.append(sweep_table("block", {"ours": row.blocks}))
        if row.timesteps:
            chart = figures.timesteps_figure(row.timesteps)
            path = save_figure(chart, found.folder / "figures" / f"timesteps-{stem}.svg")
            caption = (
                f"Row {row.number}: the fixed time step of the features, with clean and noisy input "
                f"({BY_TIMESTEP_SOURCE}). {accuracy_text([row], next(iter(row.timesteps.values())))}"
            )
            blocks.append(Picture(path, "Accuracy against the time step of the features", caption))
            blocks.append(sweep_table("t", {f"{given} input": points for given, points in row.timesteps.items()}))
    return blocks


def _tokenizers(found: Collection) -> list:
    blocks: list = []
    tiles = []
    for row in filter(None, map(found.row, FILTER_ROWS)):
        weights = None if row.first_run is None else row.first_run / "model.safetensors"
        if row.config is None or weights is None or not weights.is_file():
            continue  # not run, or measurements that were kept without their weights
        with safe_open(weights, framework="pt") as file:
            v = file.get_tensor("ldae.tokenizer.components")  # (d, D)
        name = figures.LABELS[row.config.latent_tokenizer].replace("patch ", "")
        side = row.config.patch_size
        tiles.append((name, v.reshape(len(v), row.config.num_channels, side, side)))
    if tiles:
        path = save_figure(figures.filters_figure(tiles), found.folder / "figures" / "filters.png")
        caption = (
            "As Figure 4: the filters (rows of V) of the patch-wise tokenizers, "
            f"{', '.join(name for name, _ in tiles)}. Those of PCA are sorted by variance; those of VAE and AE have "
            "no order."
        )
        blocks.append(Picture(path, "Filters of the patch-wise tokenizers", caption))
    table = tokenizers_table(found)
    return [*blocks, table] if table.rows else blocks


def _noise(found: Collection) -> list:
    blocks: list = []
    config = next((row.config for row in found.rows if row.config is not None), None)
    if config is not None:
        chart = figures.schedules_figure(config.num_train_timesteps, config.beta_start, config.beta_end)
        path = save_figure(chart, found.folder / "figures" / "schedules.svg")
        caption = "As Figure 3: the share of the signal over time, in DDPM's schedule and in the one linear in γ²."
        blocks.append(Picture(path, "Two noise schedules", caption))
    shown = _shown(found)
    if shown is not None:
        caption = (
            "As Figure 7: a clean image, noise on its pixels, and noise of the same σ = √⅓ on its latents, shown by "
            f"the inverse of the tokenizer (row {shown.number})."
        )
        blocks += _run_picture(shown, "noise.png", "Pixel noise beside latent noise", caption)
    return blocks


def _denoising(found: Collection) -> list:
    shown = _shown(found)
    if shown is None:
        return []
    caption = (
        f"As Figure 8: clean images, noisy inputs and what the network makes of them at three noise levels (row "
        f"{shown.number}, {shown.images or 0:,} images seen)."
    )
    return _run_picture(shown, "denoising.png", "Clean, noisy and denoised images", caption)


def _samples(found: Collection) -> list:
    blocks: list = []
    table = samples_table(found)
    if table.rows:
        blocks.append(
            "l-DAE is made to learn features, not to generate: along the paper's path FID gets worse while accuracy "
            f"does not (Tab. 1). FID and KID compare features of {extractor_names(found)}; the paper's FID compares "
            "features of Inception on 50,000 images. Ours compare with each other only."
        )
        blocks.append(table)
    for row in found.rows:
        caption = f"Row {row.number}, {row.label}: the first samples, none chosen."
        if row.config is not None and row.config.noise_schedule in ("linear_sigma", "constant"):
            caption += " Its noise never hides the image, so it did not learn to start from pure noise."
        blocks += _run_picture(row, SAMPLES_PICTURE, f"Samples of row {row.number}", caption)
    return blocks


def _run_picture(row: VariantResults, name: str, alt: str, caption: str) -> list[Picture]:
    path = None if row.first_run is None else row.first_run / "pictures" / name
    return [Picture(path, alt, caption)] if path is not None and path.is_file() else []


def _shown(found: Collection) -> VariantResults | None:
    wanted = found.row(SHOWN_ROW)
    if wanted is not None and wanted.runs:
        return wanted
    finished = [result for result in found.results if result.runs]
    return finished[-1] if finished else None
