"""The tables of the report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ldae.deconstruct.collect import Collection, Summary, VariantResults
from ldae.deconstruct.trajectory import Step, row_label, row_number, row_paper
from ldae.reports.document import Table
from ldae.reports.paper_figures import BY_DIMENSION
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
    fid_head = (
        [f"{fid_name(found)}, ours", "FID-50K, paper"] if any("fid" in row.samples for row in found.rows) else []
    )
    head = [
        "row",
        "step",
        SEARCHED,
        AT_PAPER,
        "paper, %",
        *fid_head,
        "seeds",
        "images seen",
        "paper's source",
        "command",
    ]
    rows = []
    for row in found.rows:
        paper = row_paper(row)
        fid = [_number(row.samples.get("fid")), "" if paper is None or paper.fid is None else f"{paper.fid:.1f}"]
        rows.append(
            [
                row_number(row),
                row_label(row),
                *_both_points(row),
                "" if paper is None else f"{paper.accuracy:.1f}",
                *(fid if fid_head else []),
                _seeds(row),
                _images(row),
                "" if paper is None else paper.source + ("*" if paper.note else ""),
                f"`--rows {row_number(row)}`",
            ]
        )
    return Table(head, rows, numbers=(SEARCHED, AT_PAPER, "paper, %", *fid_head, "seeds", "images seen"))


def steps_table(steps: list[Step]) -> Table:
    """List each step's change of accuracy, its sign, and its size against two standard errors."""
    head = ["step to row", "change", "ours, points", "paper, points", "sign", "beyond two standard errors"]
    verdict = {True: "yes", False: "no", None: ""}
    sign = {True: "the paper's", False: "the other", None: ""}
    rows = []
    for step in steps:
        one_seed = step.ours is not None and step.stderr is None
        error = "" if step.stderr is None else f" ± {step.stderr:.1f}"
        rows.append(
            [
                row_number(step.row),
                f"{row_label(step.row)} (from row {row_number(step.base)})",
                "not run" if step.ours is None else f"{step.ours:+.1f}{error}",
                "" if step.paper is None else f"{step.paper:+.1f}",
                "the paper's is zero" if step.ours is not None and step.paper == 0 else sign[step.agrees],
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
    for result in (*found.rows, *found.sweep):
        if result.first_run is not None:
            name = Path(read_recipe(result.first_run)["tokenizer"]["tokenizer"] or "").name
            users.setdefault(name, []).append(row_number(result))
    rows = []
    for name, keys in users.items():
        folder = found.folder / "tokenizers" / name
        file = folder / "results.json"
        if not file.is_file():
            continue
        quality = {entry["metric"]: entry for entry in json.loads(file.read_text())}
        recipe = read_recipe(folder)
        kind = recipe["model"]["latent_tokenizer"]
        digits = {"psnr": 2, "ssim": 3, "mse": 4}
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
    head = ["row", fid_name(found), "KID", "paper, FID-50K", "generated", "real"]
    head += ["seeds", "sampler, steps", "guidance"]
    return Table(head, rows, numbers=(*head[1:7], "guidance"))


def fid_name(found: Collection) -> str:
    """Return the name of FID with the number of images, such as `FID-5K`."""
    names = {row.samples["fid"].entry["metric"] for row in found.rows if "fid" in row.samples}
    return names.pop() if len(names) == 1 else "FID"


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read the recipe.yaml of a run."""
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def _both_points(row: VariantResults) -> tuple[str, str]:
    """Format the accuracies at the searched point and at the recipe's own; Adam's probes have only the latter."""
    missing = "" if row.accuracy is not None else "not run"
    return percent(row.searched, missing), percent(row.at_paper, missing)


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
