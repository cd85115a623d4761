"""The verbs of the `ldae` command, one module each. Importing this table loads neither them nor their options."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Verb:
    """A verb `name`, which runs `ldae.verbs.name.run(options)`.

    Attributes:
        summary (`str`): What it does, for the list of commands.
        options_path (`str`): Module and class of its options, in `ldae.verbs.options`.
        at_once (`bool`): Stop at the first signal, since there are no batches to stop between.
        light (`bool`): Start without torch and the models, since it only reads options and recipes.
    """

    summary: str
    options_path: str
    at_once: bool = False
    light: bool = False

    @property
    def options(self) -> Any:
        """The class of its options, whose docstring is its help."""
        module, name = self.options_path.split(".")
        return getattr(import_module(f"ldae.verbs.options.{module}"), name)


GROUPS: dict[str, dict[str, Verb]] = {
    "start": {
        "init": Verb("look at your images and this machine, and write a recipe that fits both", "start.InitOptions"),
        "doctor": Verb("what limits a recipe here or on other machines, and what to change", "start.DoctorOptions"),
        "recipes": Verb(
            "list and print the recipes that come with ldae", "start.RecipesOptions", at_once=True, light=True
        ),
        "completion": Verb(
            "complete commands and options in bash or zsh", "start.CompletionOptions", at_once=True, light=True
        ),
    },
    "train": {
        "train_tokenizer": Verb("fit the latent tokenizer of a recipe", "train.TrainTokenizerOptions"),
        "pretrain": Verb("pre-train from a recipe; the same command resumes", "train.PretrainOptions"),
        "finetune": Verb("fine-tune a checkpoint's encoder as an image classifier", "train.FinetuneOptions"),
        "deconstruct": Verb("run the paper's trajectory from DiT to l-DAE and report it", "train.DeconstructOptions"),
    },
    "measure": {
        "linear_probe": Verb("linear probes over blocks, time steps and learning rates", "measure.LinearProbeOptions"),
        "grid_search": Verb(
            "find the best block and time step, and write them into the config", "measure.GridSearchOptions"
        ),
        "knn": Verb("nearest-neighbour accuracy", "measure.KnnOptions"),
        "compare": Verb("one table of several encoders under the same probes", "measure.CompareOptions"),
        "alignment": Verb("alignment and uniformity by block and time step", "measure.AlignmentOptions"),
        "noise_classification": Verb("accuracy over the noise levels", "measure.NoiseClassificationOptions"),
        "checkpoint_sweep": Verb("accuracy and FID of every checkpoint of a run", "measure.CheckpointSweepOptions"),
    },
    "use": {
        "extract_features": Verb(
            "features of a whole data set as a table, with an index if wanted", "use.ExtractFeaturesOptions"
        ),
        "search": Verb("images of a table that are nearest to an image", "use.SearchOptions", at_once=True),
        "generate": Verb("sample images, and measure their FID and KID", "use.GenerateOptions"),
        "demo": Verb(
            "a page to look at a checkpoint with, here or as a Space of the Hub", "use.DemoOptions", at_once=True
        ),
    },
    "share": {
        "export": Verb(
            "a checkpoint for transformers, timm, ONNX or torch.export", "share.ExportOptions", at_once=True
        ),
        "card": Verb("write a checkpoint's model card from its results", "share.CardOptions", at_once=True),
        "push_to_hub": Verb("upload a checkpoint's folder to the Hub", "share.PushToHubOptions", at_once=True),
    },
}
VERBS: dict[str, Verb] = {name: verb for group in GROUPS.values() for name, verb in group.items()}
