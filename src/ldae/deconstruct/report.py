"""Write report.md and report.html of an output folder: the paper's figures and tables, ours beside the paper's."""

from pathlib import Path

from safetensors import safe_open

from ldae.deconstruct import figures
from ldae.deconstruct.collect import Collection, VariantResults, collect
from ldae.deconstruct.preset import Preset
from ldae.deconstruct.report_tables import (
    baselines_table,
    dimensions_table,
    samples_table,
    steps_table,
    sweep_table,
    tokenizers_table,
    trajectory_table,
)
from ldae.deconstruct.report_text import (
    accuracy_text,
    baselines_text,
    data_name,
    fid_note,
    how_measured,
    opening,
    paper_notes,
    run_config,
    samples_text,
    steps_note,
    trajectory_caption,
)
from ldae.deconstruct.samples import SAMPLES_PICTURE
from ldae.deconstruct.trajectory import count_steps, row_label, row_number, row_paper, trajectory_steps
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
    sections = [section for section in _sections(found, command) if section.blocks]
    write_whole(output_dir / "report.md", render_markdown(title, sections, output_dir))
    write_whole(output_dir / "report.html", render_html(title, sections))
    return output_dir / "report.html"


def _sections(found: Collection, command: str) -> list[Section]:
    return [
        Section("", opening(found)),
        _trajectory(found),
        _dimensions(found),
        _baselines(found),
        _studies(found),
        _tokenizers(found),
        _noise(found),
        _denoising(found),
        _samples(found),
        Section("How it was measured", how_measured(found, command)),
    ]


def _trajectory(found: Collection) -> Section:
    if not found.rows:
        return Section("The trajectory", [])
    bars = [(row_number(row), row_label(row), row.accuracy, row_paper(row)) for row in found.rows]
    searched = any(row.searched for row in found.rows)
    at_paper = [row.at_paper if searched else None for row in found.rows]
    groups = [i for i, row in enumerate(found.rows) if i and row.variant.key in GROUPS]
    chart = save_figure(figures.trajectory_figure(bars, groups, at_paper), found.folder / "figures" / "trajectory.svg")
    alt = "Bars of linear-probe accuracy by step, ours and the paper's"
    blocks: list = [Picture(chart, alt, trajectory_caption(found)), trajectory_table(found)]
    blocks += [*paper_notes(found), *fid_note(found)]
    steps = trajectory_steps(found)
    counted = count_steps(steps)
    if counted:
        blocks += [f"*{counted}* {steps_note()}", steps_table(steps)]
    return Section("The trajectory", blocks)


def _dimensions(found: Collection) -> Section:
    done = [result for result in found.sweep if result.accuracy is not None]
    if not found.sweep:
        return Section("Accuracy by latent dimension", [])
    config = run_config(done[0]) if done else None
    blocks: list = []
    if config is not None:
        chart = figures.dimensions_figure(done, config.patch_dim)
        path = save_figure(chart, found.folder / "figures" / "dimensions.svg")
        paper = f"Paper: {BY_DIMENSION_SOURCE}. {' '.join(BY_DIMENSION_NOTES)}"
        caption = f"As Table 2 and Figure 5. {accuracy_text(done)} {paper}"
        blocks.append(Picture(path, "Accuracy against latent dimension, by tokenizer, ours and the paper's", caption))
    return Section("Accuracy by latent dimension", [*blocks, dimensions_table(found)])


def _baselines(found: Collection) -> Section:
    if not found.baselines:
        return Section("What an encoder must beat", [])
    return Section("What an encoder must beat", [baselines_text(found), baselines_table(found)])


def _studies(found: Collection) -> Section:
    blocks: list = []
    for row in found.rows:
        config = run_config(row)
        if config is None:
            continue
        stem = row.variant.name
        if row.blocks:
            chart = figures.blocks_figure(row.blocks, config.num_hidden_layers, config.total_num_hidden_layers)
            path = save_figure(chart, found.folder / "figures" / f"blocks-{stem}.svg")
            caption = (
                f"Row {row_number(row)}: where the encoder is cut, after training ({BY_BLOCK_SOURCE}). "
                f"{accuracy_text([row], row.blocks)}"
            )
            blocks.append(Picture(path, "Accuracy against the block that features are read after", caption))
            blocks.append(sweep_table("block", {"ours": row.blocks}))
        if row.timesteps:
            path = save_figure(
                figures.timesteps_figure(row.timesteps), found.folder / "figures" / f"timesteps-{stem}.svg"
            )
            caption = (
                f"Row {row_number(row)}: the fixed time step of the features, with clean and noisy input "
                f"({BY_TIMESTEP_SOURCE}). {accuracy_text([row], next(iter(row.timesteps.values())))}"
            )
            blocks.append(Picture(path, "Accuracy against the time step of the features", caption))
            blocks.append(sweep_table("t", {f"{given} input": points for given, points in row.timesteps.items()}))
    return Section("Where and when features are read", blocks)


def _tokenizers(found: Collection) -> Section:
    blocks: list = []
    tiles = []
    for key in FILTER_ROWS:
        row = found.row(key)
        config = run_config(row) if row is not None else None
        if row is None or config is None or row.first_run is None:
            continue
        if not (row.first_run / "model.safetensors").is_file():
            continue  # measurements that were kept without their weights
        with safe_open(row.first_run / "model.safetensors", framework="pt") as file:
            v = file.get_tensor("ldae.tokenizer.components")  # (d, D)
        name = figures.LABELS[config.latent_tokenizer].replace("patch ", "")
        tiles.append((name, v.reshape(len(v), config.num_channels, config.patch_size, config.patch_size)))
    if tiles:
        path = save_figure(figures.filters_figure(tiles), found.folder / "figures" / "filters.png")
        caption = (
            "As Figure 4: the filters (rows of V) of the patch-wise tokenizers, "
            f"{', '.join(name for name, _ in tiles)}. Those of PCA are sorted by variance; those of VAE and AE have "
            "no order."
        )
        blocks.append(Picture(path, "Filters of the patch-wise tokenizers", caption))
    table = tokenizers_table(found)
    return Section("Tokenizers", [*blocks, table] if table.rows else blocks)


def _noise(found: Collection) -> Section:
    blocks: list = []
    config = next((run_config(row) for row in found.rows if row.runs), None)
    if config is not None:
        chart = figures.schedules_figure(config.num_train_timesteps, config.beta_start, config.beta_end)
        path = save_figure(chart, found.folder / "figures" / "schedules.svg")
        caption = "As Figure 3: the share of the signal over time, in DDPM's schedule and in the one linear in γ²."
        blocks.append(Picture(path, "Two noise schedules", caption))
    shown = _shown(found)
    if shown is not None:
        caption = (
            "As Figure 7: a clean image, noise on its pixels, and noise of the same σ = √⅓ on its latents, shown by "
            f"the inverse of the tokenizer (row {row_number(shown)})."
        )
        blocks += _run_picture(shown, "noise.png", "Pixel noise beside latent noise", caption)
    return Section("Noise", blocks)


def _denoising(found: Collection) -> Section:
    shown = _shown(found)
    if shown is None:
        return Section("Denoising", [])
    caption = (
        f"As Figure 8: clean images, noisy inputs and what the network makes of them at three noise levels (row "
        f"{row_number(shown)}, {shown.images or 0:,} images seen)."
    )
    return Section("Denoising", _run_picture(shown, "denoising.png", "Clean, noisy and denoised images", caption))


def _samples(found: Collection) -> Section:
    blocks: list = []
    table = samples_table(found)
    if table.rows:
        blocks += [samples_text(found), table]
    for row in found.rows:
        grid = None if row.first_run is None else row.first_run / SAMPLES_PICTURE
        if grid is not None and grid.is_file():
            caption = f"Row {row_number(row)}, {row_label(row)}: the first samples, none chosen.{_never_hidden(row)}"
            blocks.append(Picture(grid, f"Samples of row {row_number(row)}", caption))
    return Section("Samples", blocks)


def _never_hidden(row: VariantResults) -> str:
    config = run_config(row)
    if config is None or config.noise_schedule not in ("linear_sigma", "constant"):
        return ""
    return " Its noise never hides the image, so it did not learn to start from pure noise."


def _run_picture(row: VariantResults, name: str, alt: str, caption: str) -> list[Picture]:
    path = None if row.first_run is None else row.first_run / "pictures" / name
    return [Picture(path, alt, caption)] if path is not None and path.is_file() else []


def _shown(found: Collection) -> VariantResults | None:
    wanted = found.row(SHOWN_ROW)
    if wanted is not None and wanted.runs:
        return wanted
    finished = [row for row in [*found.rows, *found.sweep] if row.runs]
    return finished[-1] if finished else None
