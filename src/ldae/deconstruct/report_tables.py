"""The tables of the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldae.deconstruct.collect import Collection, Summary, VariantResults, read_recipe
from ldae.deconstruct.trajectory import Step
from ldae.reports.document import Table
from ldae.reports.paper_figures import BY_DIMENSION
from ldae.results import read_results
from ldae.training.tokenizer_training import FITTED


SEARCHED, AT_PAPER = "ours, searched point, %", "ours, t = 10, %"  # column heads


def percent(summary: Summary | None, missing: str = "not run") -> str:
    """Format an accuracy in percent with its standard error, `63.2 ± 0.4`."""
    if summary is None:
        return missing
    error = "" if summary.stderr is None else f" ± {100 * summary.stderr:.1f}"
    return f"{100 * summary.mean:.1f}{error}"


def trajectory_table(found: Collection) -> Table:
    """List all rows with accuracy and FID, ours and the paper's."""
    fids = [f"{fid_name(found)}, ours", "FID-50K, paper"] if any("fid" in row.samples for row in found.rows) else []
    numbers = [SEARCHED, AT_PAPER, "paper, %", *fids, "seeds", "images seen"]
    rows = []
    for row in found.rows:
        cells = [*_both_points(row), "" if row.paper is None else f"{row.paper.accuracy:.1f}"]
        cells += [_number(row.samples.get("fid")), _paper_fid(row)] if fids else []
        source = "" if row.paper is None else row.paper.source + ("*" if row.paper.note else "")
        command = f"`--rows {row.number}`"
        rows.append([row.number, row.label, *cells, _seeds(row), _images(row), source, command])
    return Table(["row", "step", *numbers, "paper's source", "command"], rows, numbers)


def steps_table(steps: list[Step]) -> Table:
    """List each step's change of accuracy, its sign, and its size against two standard errors."""
    head = ["step to row", "change", "ours, points", "paper, points", "sign", "beyond two standard errors"]
    verdict = {True: "yes", False: "no", None: ""}
    sign = {True: "the paper's", False: "the other", None: ""}
    rows = []
    for step in steps:
        zero = "the paper's" if step.paper == 0 else "ours" if step.ours == 0 and step.paper is not None else None
        one_seed = step.ours is not None and step.stderr is None
        error = "" if step.stderr is None else f" ± {step.stderr:.1f}"
        rows.append(
            [
                step.row.number,
                f"{step.row.label} (from row {step.base.number})",
                "not run" if step.ours is None else f"{step.ours:+.1f}{error}",
                "" if step.paper is None else f"{step.paper:+.1f}",
                f"{zero} is zero" if step.ours is not None and zero else sign[step.agrees],
                "one seed" if one_seed else verdict[step.is_significant],
            ]
        )
    return Table(head, rows, numbers=("ours, points", "paper, points"))


def dimensions_table(found: Collection) -> Table:
    """List accuracy by latent dimension (Tab. 2, Fig. 5), ours and the paper's."""
    rows = []
    for result in found.sweep:
        tokenizer, d = result.variant.tokenizer or "", result.variant.dimension or 0
        paper = BY_DIMENSION.get(tokenizer, {}).get(d)
        theirs = "" if paper is None else f"{paper:.1f}"
        rows.append([tokenizer, str(d), *_both_points(result), _seeds(result), theirs, _images(result)])
    head = ["tokenizer", "d", SEARCHED, AT_PAPER, "seeds", "paper at that d (D = 768), %", "images seen"]
    return Table(head, rows, numbers=head[1:])


def baselines_table(found: Collection) -> Table:
    """List the baselines that an encoder must beat."""
    rows = [[name, percent(summary), str(summary.seeds)] for name, summary in found.baselines.items()]
    return Table(["features", "linear probe, %", "probe seeds"], rows, numbers=("linear probe, %", "probe seeds"))


def sweep_table(name: str, series: Mapping[str, Mapping[int, Summary]]) -> Table:
    """List a sweep, with a column for each block or time step."""
    at = sorted({value for points in series.values() for value in points})
    rows = [[label, *(percent(points.get(value), "") for value in at)] for label, points in series.items()]
    return Table([name, *map(str, at)], rows, numbers=tuple(map(str, at)))


def tokenizers_table(found: Collection) -> Table:
    """List the shared tokenizers, how well they reconstruct images, and the rows that use them."""
    users: dict[str, list[str]] = {}
    for result in found.results:
        if result.first_run is not None:
            name = Path(read_recipe(result.first_run)["tokenizer"]["tokenizer"] or "").name
            users.setdefault(name, []).append(result.number)
    rows = []
    digits = {"psnr": 2, "ssim": 3, "mse": 4}
    for name, keys in users.items():
        folder = found.folder / "tokenizers" / name
        quality = {entry["metric"]: entry for entry in read_results(folder)}
        if not quality:
            continue
        recipe = read_recipe(folder)
        kind = recipe["model"]["latent_tokenizer"]
        rows.append(
            [
                f"{kind}, d = {recipe['model']['latent_dim']}",
                ", ".join(keys),
                _losses(kind, recipe["tokenizer"]),
                *(f"{quality[metric]['value']:.{places}f}" for metric, places in digits.items()),
                f"{quality['psnr'].get('n', 0):,}",
                "" if kind in FITTED else f"{recipe['training']['images']:,}",
            ]
        )
    head = ["tokenizer", "rows", "losses", "PSNR, dB", "SSIM", "squared error", "test images", "images seen"]
    return Table(head, rows, numbers=head[3:])


def samples_table(found: Collection) -> Table:
    """List FID and KID of generated images."""
    rows = []
    for row in found.rows:
        if "fid" not in row.samples:
            continue
        fid = row.samples["fid"]
        protocol = fid.entry["protocol"]
        rows.append(
            [
                row.number,
                _number(fid),
                _number(row.samples.get("kid"), 4),
                _paper_fid(row),
                f"{fid.entry['n']:,}",
                f"{protocol['reference_images']:,}",
                str(fid.seeds),
                f"{protocol['sampler']}, {protocol['steps']}",
                f"{protocol['guidance_scale']:g}",
            ]
        )
    numbers = [fid_name(found), "KID", "paper, FID-50K", "generated", "real", "seeds"]
    return Table(["row", *numbers, "sampler, steps", "guidance"], rows, numbers=[*numbers, "guidance"])


def fid_name(found: Collection) -> str:
    """Return the name of FID with the number of images, such as `FID-5K`."""
    names = {row.samples["fid"].entry["metric"] for row in found.rows if "fid" in row.samples}
    return names.pop() if len(names) == 1 else "FID"


def _both_points(row: VariantResults) -> tuple[str, str]:
    """Format the accuracies at the searched point and at the recipe's own; Adam's probes have only the latter."""
    missing = "" if row.accuracy is not None else "not run"
    return percent(row.searched, missing), percent(row.at_paper, missing)


def _paper_fid(row: VariantResults) -> str:
    return "" if row.paper is None or row.paper.fid is None else f"{row.paper.fid:.1f}"


def _seeds(row: VariantResults) -> str:
    return "" if row.accuracy is None else str(row.accuracy.seeds)


def _images(row: VariantResults) -> str:
    return f"{row.images:,}" if row.images else ""


def _number(summary: Summary | None, digits: int = 1) -> str:
    if summary is None:
        return ""
    error = "" if summary.stderr is None else f" ± {summary.stderr:.{digits}f}"
    return f"{summary.mean:.{digits}f}{error}"


def _losses(kind: str, weights: dict[str, Any]) -> str:
    if kind in FITTED:
        return "none: fitted"
    parts = ["squared error"]
    parts += [f"KL x {weights['kl_weight']:g}"] if kind in ("vae", "conv_vae") else []
    if kind == "conv_vae":
        parts += ["perceptual"] if weights["perceptual_weight"] else []
        parts += ["adversarial"] if weights["adversarial_weight"] else []
    return ", ".join(parts)
