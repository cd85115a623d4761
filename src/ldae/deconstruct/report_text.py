"""The words and tables of the report."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ldae.deconstruct.collect import Collection, Summary, VariantResults
from ldae.models.configuration_ldae import LDAEConfig
from ldae.reports.document import Table
from ldae.reports.paper_figures import BY_DIMENSION, SETTING, TRAJECTORY, PaperStep, paper_step
from ldae.training.tokenizer_training import FITTED


SEARCHED, AT_PAPER = "ours, searched point, %", "ours, t = 10, %"  # heads of columns
PAPER_IMAGES = 512_466_800  # 400 epochs


def row_number(row: VariantResults) -> str:
    """A row's number as the paper's readers count: `0`, `7`, `12a`."""
    key = row.variant.key
    return key[1:] if len(key) > 1 and key.startswith("0") else key


def row_label(row: VariantResults) -> str:
    """A row's step in words: the paper's, or the name of a recipe that the paper has not."""
    step = paper_step(row.variant.key)
    return step.step if step is not None else row.variant.name.replace("_", " ")


def row_paper(row: VariantResults) -> PaperStep | None:
    """The paper's figures for a row."""
    return paper_step(row.variant.key)


def run_config(row: VariantResults) -> LDAEConfig | None:
    """The configuration of a variant's first finished run."""
    return None if row.first_run is None else LDAEConfig.from_pretrained(row.first_run)


def data_name(found: Collection) -> str:
    """The data set of the runs, without the folders of the machine that it lay on."""
    for result in (*found.rows, *found.sweep):
        if result.first_run is not None:
            return Path(_recipe(result.first_run)["data"]["dataset"].rstrip("/*")).name
    return Path(str(found.preset.sections["data"].get("dataset", "data of one's own"))).name


def percent(summary: Summary | None, missing: str = "not run") -> str:
    """An accuracy in percent with its standard error, `63.2 ± 0.4`."""
    if summary is None:
        return missing
    error = "" if summary.stderr is None else f" ± {100 * summary.stderr:.1f}"
    return f"{100 * summary.mean:.1f}{error}"


def opening(found: Collection) -> list[str]:
    """What this is, how much of it is there, and what may be read from it."""
    lines = [
        "The path of Chen, Liu, Xie and He, *Deconstructing Denoising Diffusion Models for Self-Supervised Learning* (arXiv "
        "2401.14404), step by step, with the linear-probe accuracy of the encoder after each."
    ]
    if found.rows:
        done = [row for row in found.rows if row.accuracy is not None]
        text = f"{len(done)} of {len(found.rows)} rows are measured."
        missing = [row for row in found.rows if row.accuracy is None]
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
            f"These budgets are far smaller than the paper's: each pre-training saw {seen} images of {data_name(found)} at "
            f"{config.image_size} x {config.image_size} with {config.num_hidden_layers} + {config.decoder_num_hidden_layers} "
            f"blocks of width {config.hidden_size}. The paper's setting is {SETTING}. The levels do not compare; the "
            "direction of the steps may, where it is larger than the spread."
            if images[-1] < PAPER_IMAGES
            else f"Each pre-training saw {seen} images of {data_name(found)}; the paper's setting is {SETTING}."
        )
    return lines


def trajectory_note(found: Collection) -> str:
    """How our bars were measured, and how many steps go the paper's way."""
    done = [row for row in found.rows if row.accuracy is not None]
    if not done:
        return "None of ours is measured yet."
    text = accuracy_text(done)
    ours, theirs = _changes(found)
    both = [(ours[key], theirs[key]) for key in ours if key in theirs]
    same = sum(a * b > 0 for a, b in both)
    if both:
        text += f" Steps measured on both sides: {len(both)}; of these in the paper's direction: {same}."
    return text


def trajectory_table(found: Collection) -> Table:
    """All rows: ours and the paper's."""
    head = [
        "row",
        "step",
        SEARCHED,
        AT_PAPER,
        "change",
        "seeds",
        "paper, %",
        "change",
        "paper's source",
        *_fid_head(found),
    ]
    head += ["images seen", "command"]
    ours, theirs = _changes(found)
    rows = []
    for row in found.rows:
        key, paper = row.variant.key, row_paper(row)
        source = "" if paper is None else paper.source + ("*" if paper.note else "")
        fid = row.samples.get("fid")
        rows.append(
            [
                row_number(row),
                row_label(row),
                *_both_points(row),
                _signed(ours.get(key)),
                "" if row.accuracy is None else str(row.accuracy.seeds),
                "" if paper is None else f"{paper.accuracy:.1f}",
                _signed(theirs.get(key)),
                source,
                *(
                    [_number(fid), "" if paper is None or paper.fid is None else f"{paper.fid:.1f}"]
                    if _fid_head(found)
                    else []
                ),
                f"{row.images:,}" if row.images else "",
                f"`--rows {row_number(row)}`",
            ]
        )
    return Table(
        head, rows, numbers=(SEARCHED, AT_PAPER, "change", "seeds", "paper, %", *_fid_head(found), "images seen")
    )


def _both_points(row: VariantResults) -> tuple[str, str]:
    """Show the accuracies at the searched point and at the recipe's own; Adam's probes have the latter alone."""
    missing = "" if row.accuracy is not None else "not run"
    return percent(row.searched, missing), percent(row.at_paper, missing)


def paper_notes(found: Collection) -> list[str]:
    """Where the paper contradicts itself, of the rows shown."""
    steps = [step for step in map(row_paper, found.rows) if step is not None and step.note]
    notes = "; ".join(f"row {step.row.lstrip('0') or '0'}: {step.note}" for step in steps)
    return [f"(*) {notes}."] if notes else []


def dimensions_table(found: Collection) -> Table:
    """Tab. 2 and Fig. 5: ours and the paper's side by side, each at its own dimensions."""
    rows = []
    for result in found.sweep:
        tokenizer, d = result.variant.tokenizer or "", result.variant.dimension or 0
        paper = BY_DIMENSION.get(tokenizer, {}).get(d)
        rows.append(
            [
                tokenizer,
                str(d),
                *_both_points(result),
                "" if result.accuracy is None else str(result.accuracy.seeds),
                "" if paper is None else f"{paper:.1f}",
                f"{result.images:,}" if result.images else "",
            ]
        )
    head = ["tokenizer", "d", SEARCHED, AT_PAPER, "seeds", "paper at that d (D = 768), %", "images seen"]
    return Table(head, rows, numbers=head[1:])


def baselines_text(found: Collection) -> str:
    """What the baselines are, and which rows are ahead of them."""
    best = max(found.baselines.values(), key=lambda summary: summary.mean)
    ahead = [row_number(row) for row in found.rows if row.accuracy is not None and row.accuracy.mean > best.mean]
    verdict = f"Rows ahead of all three: {', '.join(ahead)}." if ahead else "No row is ahead of all three."
    return (
        "The same network with random weights (its gates drawn at random too), the mean latents of the image, and its raw "
        f"pixels, under the same probe, on features computed once. The spread is over probe seeds. {verdict}"
    )


def baselines_table(found: Collection) -> Table:
    """What an encoder must beat."""
    rows = [[name, percent(summary), str(summary.seeds)] for name, summary in found.baselines.items()]
    return Table(["features", "linear probe, %", "probe seeds"], rows, numbers=("linear probe, %", "probe seeds"))


def sweep_table(name: str, series: Mapping[str, Mapping[int, Summary]]) -> Table:
    """A sweep as a table: a column for each block or time step."""
    at = sorted({value for points in series.values() for value in points})
    rows = [[label, *(percent(points.get(value), "") for value in at)] for label, points in series.items()]
    return Table([name, *map(str, at)], rows, numbers=tuple(map(str, at)))


def tokenizers_table(found: Collection) -> Table:
    """The tokenizers that the runs share: how well they give images back, and which rows use them."""
    users: dict[str, list[str]] = {}
    for result in (*found.rows, *found.sweep):
        if result.first_run is not None:
            name = Path(_recipe(result.first_run)["tokenizer"]["tokenizer"] or "").name
            users.setdefault(name, []).append(row_number(result))
    rows = []
    for name, keys in users.items():
        folder = found.folder / "tokenizers" / name
        quality = _results(folder)
        if not quality:
            continue
        recipe = _recipe(folder)
        rows.append(
            [
                f"{recipe['model']['latent_tokenizer']}, d = {recipe['model']['latent_dim']}",
                ", ".join(keys),
                _losses(recipe),
                *(
                    f"{quality[metric]['value']:.{digits}f}"
                    for metric, digits in (("psnr", 2), ("ssim", 3), ("mse", 4))
                ),
                f"{quality['psnr'].get('n', 0):,}",
                "" if recipe["model"]["latent_tokenizer"] in FITTED else f"{recipe['training']['images']:,}",
            ]
        )
    head = ["tokenizer", "rows", "losses", "PSNR, dB", "SSIM", "squared error", "test images", "images seen"]
    return Table(head, rows, numbers=head[3:])


def samples_table(found: Collection) -> Table:
    """FID and KID of generated images."""
    rows = []
    for row in found.rows:
        fid, kid, paper = row.samples.get("fid"), row.samples.get("kid"), row_paper(row)
        if fid is None:
            continue
        protocol = fid.entry["protocol"]
        rows.append(
            [
                row_number(row),
                _number(fid),
                "" if kid is None else _number(kid, 4),
                "" if paper is None or paper.fid is None else f"{paper.fid:.1f}",
                f"{fid.entry['n']:,}",
                f"{protocol['reference_images']:,}",
                str(fid.seeds),
                f"{protocol['sampler']}, {protocol['steps']}",
                f"{protocol['guidance_scale']:g}",
            ]
        )
    head = ["row", _fid_name(found), "KID", "paper, FID-50K", "generated", "real"]
    head += ["seeds", "sampler, steps", "guidance"]
    return Table(head, rows, numbers=(*head[1:7], "guidance"))


def samples_text(found: Collection) -> str:
    """What FID and KID are of, and that they do not compare with the paper's."""
    extractors = {row.samples["fid"].entry["protocol"]["extractor"] for row in found.rows if "fid" in row.samples}
    return (
        "l-DAE is made to learn features, not to generate: along the paper's path FID gets worse while accuracy does not "
        f"(Tab. 1). Here FID and KID are of the features of {', '.join(sorted(extractors))}; the paper's FID is of "
        "Inception's, with 50,000 images. Ours compare with each other only."
    )


def accuracy_text(results: Sequence[VariantResults], points: Mapping[Any, Summary] | None = None) -> str:
    """Protocol, seeds, number of test images, budget and machine of some accuracies, in a sentence."""
    summaries = [r.accuracy for r in results if r.accuracy is not None] if points is None else list(points.values())
    if not summaries:
        return ""
    entry, protocol = summaries[0].entry, summaries[0].entry["protocol"]
    seeds = sorted({summary.seeds for summary in summaries})
    spread = "standard error over seeds" if seeds[-1] > 1 else "no spread is known"
    images = sorted({r.images for r in results if r.images})
    hardware = sorted({r.hardware for r in results if r.hardware})
    return (
        f"Ours: {_probe_words(protocol)}, {entry['n']:,} test images of {Path(entry['dataset']).name}; "
        f"{' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} pre-training seed{'s' if seeds[-1] > 1 else ''} "
        f"({spread}), {' to '.join(f'{n:,}' for n in dict.fromkeys((images[0], images[-1]))) if images else 'no'} images "
        f"seen, {'; '.join(hardware)}."
    )


def _probe_words(protocol: Mapping[str, Any]) -> str:
    """Describe a probe in a few words."""
    point = "clean input at its own t unless said"
    if protocol.get("point") == "searched":
        point = "clean input, at the block and time step that ridge probes choose on held-out training images"
    if protocol["name"] == "logistic":
        return f"converged logistic probe ({protocol['preset']} protocol, {point})"
    return f"linear probe by Adam ({protocol['preset']} protocol, {protocol['epochs']} epochs, {point})"


def how_measured(found: Collection, command: str) -> list[str]:
    """The protocol in full, cost, and the command."""
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
            "Spread (±) is the standard error of the mean over pre-training seeds; each seed has a tokenizer of its own."
        )
        seconds = sum(result.seconds for result in done)
        hardware = sorted({result.hardware for result in done if result.hardware})
        lines.append(f"Pre-training took {seconds / 60:,.0f} minutes in all, on {'; '.join(hardware)}.")
    if command:
        lines.append(
            f"Everything here: `{command}`. One row: the same with its `--rows`; the folder of each run is "
            "`rows/NAME/seed-S`, with its `recipe.yaml`, which `ldae pretrain --config` takes."
        )
    lines.append(f"The paper's figures: arXiv 2401.14404; {SETTING}.")
    return lines


def _changes(found: Collection) -> tuple[dict[str, float], dict[str, float]]:
    """By how much each row changes accuracy against the one that it is written on: ours and the paper's, in points."""
    keys = [step.row for step in TRAJECTORY]
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    for previous, key in itertools.pairwise(keys):
        before = "12" if key in ("12a", "12b") else previous
        row, base = found.row(key), found.row(before)
        if row is not None and base is not None and row.accuracy is not None and base.accuracy is not None:
            ours[key] = 100 * (row.accuracy.mean - base.accuracy.mean)
        paper, paper_base = paper_step(key), paper_step(before)
        if paper is not None and paper_base is not None:
            theirs[key] = paper.accuracy - paper_base.accuracy
    return ours, theirs


def _fid_name(found: Collection) -> str:
    names = {row.samples["fid"].entry["metric"] for row in found.rows if "fid" in row.samples}
    return names.pop() if len(names) == 1 else "FID"


def _fid_head(found: Collection) -> list[str]:
    shown = any("fid" in row.samples for row in found.rows)
    return [f"{_fid_name(found)}, ours", "FID-50K, paper"] if shown else []


def _number(summary: Summary | None, digits: int = 1) -> str:
    if summary is None:
        return ""
    error = "" if summary.stderr is None else f" ± {summary.stderr:.{digits}f}"
    return f"{summary.mean:.{digits}f}{error}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def _losses(recipe: dict[str, Any]) -> str:
    kind, weights = recipe["model"]["latent_tokenizer"], recipe["tokenizer"]
    if kind in FITTED:
        return "none: fitted"
    parts = ["squared error"]
    parts += [f"KL x {weights['kl_weight']:g}"] if kind in ("vae", "conv_vae") else []
    if kind == "conv_vae":
        parts += ["perceptual"] if weights["perceptual_weight"] else []
        parts += ["adversarial"] if weights["adversarial_weight"] else []
    return ", ".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _recipe(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / "results.json"
    return {entry["metric"]: entry for entry in json.loads(file.read_text())} if file.is_file() else {}
