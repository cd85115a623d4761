"""Wrong command lines of every verb: options misspelt, missing, of the wrong type, or naming what is not there."""

import random
from pathlib import Path
from typing import Any

from ldae.options import describe
from ldae.training.recipe import recipes_folder
from ldae.verbs import VERBS

from . import ground as grounds
from .damage import WRONG_VALUES
from .judge import SECONDS, Case, by_verb, chance_of


COUNT = 300
IMAGES = "--dataset data --num_workers 0 --cache_dir cache".split()
SMALL = {
    "train_tokenizer": "--config recipe.yaml --output_dir out".split(),
    "pretrain": "--config recipe.yaml --output_dir out --images 64".split(),
    "finetune": "run --images 32 --total_batch_size 16 --output_dir out".split(),
    "deconstruct": "--config preset.yaml --output_dir image.png/out".split(),  # checked, then it cannot be written
    "linear_probe": ["run", *IMAGES, *"--protocol cached --probe ridge --layers 1".split()],
    "grid_search": ["run", *IMAGES, *"--layers 1,2 --timesteps 0 --write_config false".split()],
    "knn": ["run", *IMAGES, *"--k 3 --layers 1 --timesteps 10 --output_dir out".split()],
    "compare": ["run", *IMAGES, *"--metrics knn --k 3 --raw_pixels false".split()],
    "alignment": ["run", *IMAGES, *"--num_images 8 --layers 1 --timesteps 10".split()],
    "noise_classification": ["run", *IMAGES, *"--images 32 --draws 1 --timesteps 10 --batch_size 16".split()],
    "checkpoint_sweep": ["run", *IMAGES, *"--probes knn".split()],
    "extract_features": ["run", *IMAGES, *"--split test --output_dir out --rows_per_shard 8".split()],
    "search": "table image.png --k 2 --cache_dir cache".split(),
    "generate": "run --num_images 2 --steps 2 --batch_size 2 --output_dir out".split(),
    "demo": "run --dataset none --export_space out".split(),
    "export": "run --format torch-export --output_dir out".split(),
    "card": ["run"],
    "push_to_hub": "run --repo_id tester/run".split(),
    "recipes": ["digits"],
    "init": "data --minutes 5 --size nano --image_size 16 --examine 12 --output own.yaml".split(),
    "doctor": "--config recipe.yaml --on l4".split(),
    "completion": ["bash"],
}
# A long computation that was asked for is no mistake.
LONG = set(
    "images num_images fid kid steps epochs draws tokenizer_images shots samplers hidden_sizes intermediate_size "
    "hidden_size num_hidden_layers decoder_num_hidden_layers conditioning_size embedding_size num_workers".split()
)
NOWHERE = (
    "./nowhere",
    "nowhere/at/all",
    "run/nowhere",
    "rnu",
    "image.png",
    "data",
    "no one/such",
    "",
    "~nobody/x",
    "é",
)


def case(seed: int, number: int, ground: Path) -> Case:
    chance = chance_of("commands", seed, number)
    verb = sorted(SMALL)[number % len(SMALL)]
    what, words, names = damage_words(verb, list(SMALL[verb]), chance)

    def run() -> str | None:
        made = grounds.build(ground)
        with grounds.copied(made, ground / f"command-{number}", "run", "data", "table", "image.png") as folder:
            (folder / "recipe.yaml").write_text((made / "recipe.yaml").read_text())
            (folder / "preset.yaml").write_text(PRESET.format(rows=recipes_folder() / "deconstruction"))
            refusal = by_verb(verb, *words)
            if refusal is None:
                grounds.assert_finite(folder)
            return refusal

    return Case(f"{what}: ldae {verb} {' '.join(map(repr, words))}", run, names, 60 if verb == "init" else SECONDS)


PRESET = """
recipes: {rows}
seeds: [0]
rows: [7]
model: {{size: nano, image_size: 16, patch_size: 4, latent_dim: 8}}
data: {{dataset: data, num_workers: 0}}
training: {{images: 64, total_batch_size: 32}}
"""


def options_of(verb: str) -> list[Any]:
    """All options of a verb, with the fields of a recipe where it takes them."""
    kind = VERBS[verb].options
    found = describe(kind)
    for fields in kind.sections().values() if hasattr(kind, "sections") else []:
        found += fields
    return [option for option in found if option.name not in ("export_space", "host", "port")]


def damage_words(verb: str, words: list[str], chance: random.Random) -> tuple[str, list[str], tuple[str, ...]]:
    """Change a command line; returns what was done, the words, and the names that a refusal may give."""
    options = options_of(verb)
    named = [option for option in options if not option.positional]
    kinds = ("value", "value", "value", "value", "misspelt", "end", "twice") if named else ()
    kind = chance.choice((*kinds, "missing", "stray", "place"))
    if kind == "value":
        option = chance.choice(named)
        value = wrong_value(option, chance)
        return f"--{option.name}", [*words, f"--{option.name}={value}"], ()
    if kind == "misspelt":
        option = chance.choice(options)
        at = chance.randrange(len(option.name))
        name = option.name[:at] + chance.choice(("", "x", option.name[at] * 2)) + option.name[at + 1 :]
        return "misspelt", [*words, f"--{name}", "1"], ()
    if kind == "missing":
        at = chance.randrange(len(words))
        return f"without {words[at]}", words[:at] + words[at + 1 :], ()
    if kind == "stray":
        stray = chance.choice(("x", "-x", "--", "---", "--=", "=", "--=3", "\u2013-k", "*", "-", "--x.y", "1"))
        at = chance.randrange(len(words) + 1)
        return f"stray {stray!r}", [*words[:at], stray, *words[at:]], ()
    if kind == "place":
        at = chance.choice([i for i, word in enumerate(words) if not word.startswith("--")])
        words[at] = chance.choice(NOWHERE)
        return f"{SMALL[verb][at]} is {words[at]!r}", words, ()
    option = chance.choice(named)
    if kind == "end":
        return f"--{option.name} without a value", [*words, f"--{option.name}"], ()
    return (
        f"--{option.name} twice",
        [*words, f"--{option.name}=1", f"--{option.name}={wrong_value(option, chance)}"],
        (),
    )


def wrong_value(option: Any, chance: random.Random) -> str:
    if option.kind.startswith("text") and chance.random() < 0.5:
        return chance.choice(NOWHERE)
    values = [value for value in WRONG_VALUES if value not in ("/", "../..")]  # no command writes outside its folder
    if option.name in LONG:
        values = [value for value in values if not (isinstance(value, int | float) and value > 10) and value != "1e6"]
    value = chance.choice(values)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
