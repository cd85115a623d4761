"""Diffusion models of diffusers as checkpoints: a verb makes an encoder's folder of them first."""

import tempfile
from pathlib import Path
from typing import Any

from ldae.checkpoints import loading
from ldae.data.image_processor import save_image_processor
from ldae.evaluation.search import write_choice
from ldae.files import move_into
from ldae.models.modeling_ddae import DDAEModel
from ldae.models.sources_ddae import is_diffusers_source


CONFIG = "config.json"


def make_encoder(options: Any) -> None:
    """Make an encoder with all blocks of a pipeline or network of diffusers, if `options.checkpoint` names one.

    The encoder is written to `options.output_dir`, which replaces the checkpoint in `options`, so that a verb writes
    its choice into its config.json, as into that of a run. An encoder that is there already is used: the source is
    read once.

    Raises:
        ValueError: If no `output_dir` is given, or [`DDAEModel.from_diffusers`] does not know the source.
    """
    source = options.checkpoint
    with loading(source):
        is_source = is_diffusers_source(source)
    if not is_source:
        return
    if options.output_dir is None:
        raise ValueError(
            f"checkpoint={source!r} is a diffusion model of diffusers; say with --output_dir where its encoder and "
            "the results go."
        )
    folder = Path(options.output_dir)
    if (folder / CONFIG).is_file():
        print(f"{folder} holds an encoder already, which is used; {source} is not read again.")
    else:
        save_whole_encoder(source, folder)
        print(f"{folder} holds {source} as an encoder with all of its blocks.")
    options.checkpoint, options.output_dir = str(folder), None


def save_whole_encoder(source: str, folder: Path) -> None:
    """Write a diffusion model of diffusers as an encoder with all of its blocks, whose features are read at the
    default tap.

    Args:
        source (`str`): As of [`DDAEModel.from_diffusers`].
        folder (`Path`): Is made; its config.json comes last, so that a folder with one is whole.
    """
    with loading(source):
        model = DDAEModel.from_diffusers(source, "last")
    default = model.adapter.default_tap(model.config, list(model.feature_layers))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".encoder-") as staging:
        model.save_pretrained(staging)
        save_image_processor(staging, model.config)
        write_choice(staging, default, int(model.config.feature_timestep or 0))
        move_into(Path(staging), folder, last=CONFIG)
