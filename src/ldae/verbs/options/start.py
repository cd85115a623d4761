"""Options of the verbs before training."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from ldae.options import Option, Positional, options
from ldae.training.recipe import merge_sections, read_sections, recipe_options


@options
class InitOptions:
    """Look at a folder of images and at this machine, and write a recipe that trains in the time given.

    Training steps are measured, and size of the images and the network, batch, learning rate and budget are chosen,
    each with its reason. Nothing is trained.

    Args:
        folder: Folder of images, with or without sub-folders; also a folder or glob of parquet files, or a Hub id.
        minutes: Time for everything that the recipe runs here, start and probes included.
        output: File of the recipe; by default FOLDER.yaml here, by the folder's name.
        output_dir: The run's folder that the recipe names; by default runs/FOLDER.
        size: Size of the network; by default the largest that sees enough images in the time.
        image_size: Side of the images in pixels; by default what the images and this machine allow.
        split: Split that is read.
        image_column: Column of the images; by default the one with the image type.
        label_column: Column of the labels; by default the one with the class label type.
        examine: Images that are decoded at most, spread over the folder.
        overwrite: Replace the recipe if there is one.
    """

    folder: Annotated[str, Positional]
    minutes: float = Field(60.0, gt=0)
    output: str | None = None
    output_dir: str | None = None
    size: Literal["nano", "tiny", "small", "base", "12L", "large"] | None = None
    image_size: int | None = Field(None, ge=8)
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    examine: int = Field(2000, ge=10)
    overwrite: bool = False


@options
class DoctorOptions:
    """Tell what limits a recipe, and what to change.

    It shows weights, memory and arithmetic, and the speed of steps and of the loader here, measured for some seconds
    each. With --on, tell by arithmetic what it takes on other machines, without opening its images. Nothing is
    written.

    Args:
        config: The recipe: a YAML file, or the name of one that comes with ldae (`ldae recipes` lists them).
        device: Device to measure on, such as cpu; by default a GPU if there is one.
        read: Open the images, and measure how fast they are read.
        on: Accelerator to calculate for, from its published memory and peak; nothing is measured.
        num_devices: Number of these accelerators; by default 1.
        mfu: Share of the published peak that training is assumed to reach.
    """

    config: str | None = None
    device: str | None = None
    read: bool = True
    on: Literal["a100", "a100-40gb", "b200", "h100", "h200", "l4", "l40s", "rtx4090", "t4"] | None = None
    num_devices: int | None = Field(None, ge=1)
    mfu: float = Field(0.35, gt=0, le=1)
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_devices is not None and self.on is None:
            raise ValueError(f"num_devices={self.num_devices} only applies with --on, such as --on h100.")
        merge_sections(read_sections(self.config), self.overrides)

    @classmethod
    def sections(cls) -> Mapping[str, list[Option]]:
        """List the fields of the recipe by section."""
        return recipe_options()


@options
class RecipesOptions:
    """List the recipes that come with ldae, print one, or print the JSON schema with which editors complete recipes.

    Args:
        name: Recipe to print, such as digits; by default all are listed.
        schema: Print the JSON schema of recipes.
    """

    name: Annotated[str | None, Positional] = None
    schema: bool = False


@options
class CompletionOptions:
    """Print the completion of commands, options and names of recipes for a shell.

    For every new shell, add `eval "$(ldae completion bash)"` to ~/.bashrc, or `eval "$(ldae completion zsh)"` to
    ~/.zshrc after compinit.

    Args:
        shell: The shell.
    """

    shell: Annotated[Literal["bash", "zsh"], Positional]
