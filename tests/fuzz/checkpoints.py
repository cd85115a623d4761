"""Damaged checkpoints: bytes, widths, JSON, missing and swapped files, weights that are not numbers."""

import json
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import ground as grounds
from .damage import damage_bytes, damage_mapping
from .judge import Case, by_verb, chance_of


COUNT = 100
IMAGES = "--dataset data --num_workers 0 --cache_dir cache --device cpu".split()
# What is done with a damaged folder.
USES = {
    "knn": ["knn", "model", *IMAGES, *"--k 3 --output_dir out".split()],
    "extract": ["extract_features", "model", *IMAGES, *"--split test --output_dir out --rows_per_shard 8".split()],
    "generate": "generate model --num_images 2 --steps 2 --batch_size 2 --output_dir out --device cpu".split(),
    "export": "export model --format torch-export --output_dir out".split(),
    "card": "card model".split(),
    "finetune": "finetune model --images 32 --total_batch_size 16 --output_dir out".split(),
    "sweep": ["checkpoint_sweep", "model", *IMAGES, *"--probes knn".split()],
    "again": "pretrain --config recipe.yaml --output_dir model --images 288".split(),
    "resume": "pretrain --config model/recipe.yaml --output_dir model --images 288".split(),
}


def case(seed: int, number: int, ground: Path) -> Case:
    chance = chance_of("checkpoints", seed, number)
    source = chance.choice(("run", "run", "ddae"))
    uses = [use for use in USES if source == "run" or use not in ("sweep", "resume", "again", "finetune")]
    use = chance.choice(uses)
    plan = chance.choice(("bytes", "bytes", "json", "json", "json", "missing", "weights", "swap", "width", "fewer"))
    made = grounds.build(ground)
    files = sorted(p.relative_to(made / source).as_posix() for p in (made / source).rglob("*") if is_damaged(p, use))
    name = chance.choice([file for file in files if fits(file, plan)])

    def run() -> str | None:
        with grounds.copied(made, ground / f"checkpoint-{number}", "run", "ddae", "data", "recipe.yaml") as folder:
            shutil.copytree(folder / source, folder / "model")
            damage_file(folder / "model" / name, plan, chance, folder)
            verb, *arguments = USES[use]
            refusal = by_verb(verb, *arguments)
            if refusal is None:
                grounds.assert_finite(folder)
            return refusal

    return Case(f"{source}/{name} {plan}, then {use}", run, ())


def is_damaged(path: Path, use: str) -> bool:
    """The files that a use may read."""
    inside = "checkpoints" in path.parts
    if not path.is_file() or path.suffix not in (".json", ".safetensors", ".yaml", ".jsonl", ".md"):
        return False
    return inside == (use in ("sweep", "resume")) or (use == "resume" and path.suffix in (".yaml", ".jsonl"))


def fits(name: str, plan: str) -> bool:
    if plan == "json":
        return name.endswith(".json")
    return name.endswith(".safetensors") if plan in ("weights", "width", "fewer") else True


def damage_file(path: Path, plan: str, chance: random.Random, folder: Path) -> None:
    if plan == "missing":
        path.unlink()
    elif plan == "bytes":
        path.write_bytes(damage_bytes(path.read_bytes(), chance)[1])
    elif plan == "json":
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            for _ in range(chance.choice((1, 1, 3))):
                content = damage_mapping(content or {"x": 1}, chance)[1]
        else:
            content = chance.choice(({}, [1], [{}], "x", [{"metric": "accuracy", "value": float("nan")}]))
        path.write_text(json.dumps(content))
    elif plan == "swap":
        others = [p for name in ("run", "ddae") for p in sorted((folder / name).rglob("*")) if p.suffix == path.suffix]
        shutil.copy(chance.choice([p for p in others if p.is_file()]), path)
    else:
        tensors = load_file(path)
        name = chance.choice(sorted(name for name, value in tensors.items() if value.is_floating_point()))
        value = tensors[name]
        if plan == "fewer":
            del tensors[name]
        elif plan == "weights":
            value.view(-1)[chance.randrange(value.numel())] = chance.choice((float("nan"), float("inf"), 1e38))
        else:
            tensors[name] = chance.choice((torch.cat([value, value]), value[:0], value.double(), value[None].clone()))
        save_file(tensors, path)
