"""The verbs of the `ldae` command. Importing this table loads neither them nor their options."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Verb:
    """A verb of the command: the function `name` of a module of `ldae.verbs`, which takes its options.

    The options of `train_tokenizer`, of the group train, are `TrainTokenizerOptions` in `ldae.verbs.options.train`.

    Attributes:
        group (`str`): Group in the list of commands.
        name (`str`): Name on the command line.
        summary (`str`): What it does, for the list of commands.
        module (`str`, *optional*): Module that it shares with others; by default it has one of its own name.
        shared (`bool`): Share the work among the processes of a launch; see [`~ldae.shared_work.sharing_work`].
        at_once (`bool`): Stop at the first signal, since there are no batches to stop between.
        light (`bool`): Start without torch and the models, since it only reads options and recipes.
    """

    group: str
    name: str
    summary: str
    module: str | None = None
    shared: bool = False
    at_once: bool = False
    light: bool = False

    @property
    def options(self) -> Any:
        """The class of its options, whose docstring is its help."""
        words = self.name.title().replace("_", "")
        return getattr(import_module(f"ldae.verbs.options.{self.group}"), f"{words}Options")

    def run(self, options: Any) -> int:
        """Run the verb, and return its exit status."""
        return getattr(import_module(f"ldae.verbs.{self.module or self.name}"), self.name)(options)


_VERBS = (
    Verb("start", "init", "look at your images and this machine, and write a recipe that fits both"),
    Verb("start", "doctor", "what limits a recipe here or on other machines, and what to change"),
    Verb("start", "recipes", "list and print the recipes that come with ldae", "start", at_once=True, light=True),
    Verb("start", "completion", "complete commands and options in bash or zsh", "start", at_once=True, light=True),
    Verb("train", "train_tokenizer", "fit the latent tokenizer of a recipe", "train"),
    Verb("train", "pretrain", "pre-train from a recipe; the same command resumes", "train"),
    Verb("train", "finetune", "fine-tune a checkpoint's encoder as an image classifier", "train"),
    Verb("train", "deconstruct", "run the paper's trajectory from DiT to l-DAE and report it", "train"),
    Verb("measure", "linear_probe", "linear probes over blocks, time steps and learning rates", shared=True),
    Verb("measure", "grid_search", "find the best block and time step, and write them into the config", shared=True),
    Verb("measure", "knn", "nearest-neighbour accuracy", shared=True),
    Verb("measure", "compare", "one table of several encoders under the same probes", shared=True),
    Verb("measure", "alignment", "alignment and uniformity by block and time step", shared=True),
    Verb("measure", "noise_classification", "accuracy over the noise levels", shared=True),
    Verb("measure", "checkpoint_sweep", "accuracy and FID of every checkpoint of a run", shared=True),
    Verb("use", "extract_features", "features of a whole data set as a table, with an index if wanted"),
    Verb("use", "search", "images of a table that are nearest to an image", at_once=True),
    Verb("use", "generate", "sample images, and measure their FID and KID", shared=True),
    Verb("use", "demo", "a page to look at a checkpoint with, here or as a Space of the Hub", at_once=True),
    Verb("share", "export", "a checkpoint for transformers, timm, ONNX or torch.export", "share", at_once=True),
    Verb("share", "card", "write a checkpoint's model card from its results", "share", at_once=True),
    Verb("share", "push_to_hub", "upload a checkpoint's folder to the Hub", "share", at_once=True),
)
VERBS: dict[str, Verb] = {verb.name: verb for verb in _VERBS}
