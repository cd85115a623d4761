"""Options of the verbs that train."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import Field

from ldae.deconstruct.preset import preset_options
from ldae.options import Option, Positional, options
from ldae.training.finetuning_recipe import finetuning_options
from ldae.training.recipe import merge_sections, read_sections, recipe_options


@options
class RecipeOptions:
    """The recipe.

    Args:
        config: The recipe: a YAML file, or the name of one that comes with ldae (`ldae recipes` lists them).
        dry_run: Take the first steps, or fit on a few images, print what the whole run takes, and write nothing.
    """

    config: str | None = None
    dry_run: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        merge_sections(read_sections(self.config), self.overrides)

    @classmethod
    def sections(cls) -> Mapping[str, list[Option]]:
        """List the fields of the recipe by section."""
        return recipe_options()


@options
class PretrainOptions(RecipeOptions):
    """Pre-train from a recipe. The same command resumes."""


@options
class TrainTokenizerOptions(RecipeOptions):
    """Fit or train the latent tokenizer of a recipe, for later runs. The same command resumes."""


@options
class FinetuneOptions:
    """Fine-tune the encoder of a checkpoint end to end as an image classifier.

    The protocol is that of the l-DAE paper (App. B). The classifier goes to CHECKPOINT/finetune. The same command
    resumes.

    Args:
        checkpoint: A run's folder, its linear_probe/ to keep that head, or a Hub id.
        config: YAML file with the sections data, finetuning and training.
        epochs: Passes over the training images, instead of --images; by default 100.
        compare_from_scratch: Fine-tune, and train the same network from scratch, with each seed at one budget, and
            compare. Training from scratch has no layer-wise decay (--layer_decay).
        seeds: Seeds of the comparison; by default 0,1,2.
        dry_run: Take the first steps, print what the whole run takes, and write nothing.
    """

    checkpoint: Annotated[str, Positional]
    config: str | None = None
    epochs: int | None = Field(None, ge=1)
    compare_from_scratch: bool = False
    seeds: list[int] | None = None
    dry_run: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seeds is not None and not self.compare_from_scratch:
            raise ValueError(f"seeds={self.seeds} only applies with --compare_from_scratch; for one run give --seed.")

    @classmethod
    def sections(cls) -> Mapping[str, list[Option]]:
        """List the fields of the recipe by section."""
        return finetuning_options()


@options
class DeconstructOptions:
    """Run the rows of the paper's trajectory, or latent dimensions of its tokenizers, and report them.

    The reports are report.md and report.html. The same command goes on where it was stopped. Several launches, also on
    several machines, may share one folder.

    Args:
        config: The preset: a YAML file, or the name of one that comes with ldae, such as deconstruction/digits.
        output_dir: Folder for everything.
        rows: Rows that this launch works on, such as 0,7,12a; by default the preset's.
        seeds: Seeds of pre-training, such as 0,1,2; by default the preset's.
        dry_run: Take the first steps of every row, print what the whole launch takes, and write nothing.
    """

    config: str
    output_dir: str
    rows: list[str] | None = None
    seeds: list[int] | None = None
    dry_run: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def sections(cls) -> Mapping[str, list[Option]]:
        """List the fields of the preset by section."""
        return preset_options()
