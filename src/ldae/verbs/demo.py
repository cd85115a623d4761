"""`ldae demo CHECKPOINT`: a page to look at a checkpoint with, on this machine or as a Space of the Hub."""

import argparse
from dataclasses import replace
from pathlib import Path

from ldae.data import DataConfig, open_images
from ldae.demo.model import DemoModel, open_demo_model
from ldae.demo.space import export_space
from ldae.verbs.probe_options import data_config


DATA_OPTIONS = "dataset dataset_config split image_column label_column streaming cache_dir".split()


def make_parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = argparse.ArgumentParser(
        "ldae demo",
        description="Open a page in which a picture can be dropped: clean, noisy and denoised at any t, patch features as "
        "colours, layers by time steps, the nearest images of a set, samples. Needs gradio (the extra `demo`).",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", help="a run's folder, any folder that save_pretrained wrote, or a Hub id")
    data = parser.add_argument_group(
        "images for examples and neighbours (default: those of the run's recipe.yaml; --dataset none: no images)"
    )
    for name in DATA_OPTIONS:
        data.add_argument(f"--{name}", help="as the recipe's data section")
    parser.add_argument("--device", help="cuda, cpu, mps (default: cuda where there is one)")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1); 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument(
        "--export-space",
        "--export_space",
        metavar="DIR",
        help="write a Space of the Hub to this folder, and start nothing",
    )
    return parser


def main(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: the command line without the program's name.

    Returns:
        The exit status: 0.

    Raises:
        ValueError: where an option, the checkpoint or the data is refused, or gradio is missing.
    """
    options = make_parser().parse_args(argv)
    if options.export_space is not None:
        export_space(options.checkpoint, options.export_space, _chosen_data(options))
        print(f"A Space is in {options.export_space}. Try it: python {options.export_space}/app.py")
        print(f"Publish it: hf upload NAME/SPACE {options.export_space} --repo-type space")
        return 0
    try:
        from ldae.demo.page import build_page, launch_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the page needs gradio, which is not installed; pip install 'ldae[demo]'.") from error
    demo = _open(options)
    print(f"{demo.name}. {demo.description}")
    print(f"Neighbours: {demo.source.description if demo.source else 'none; --dataset names a set of images'}")
    launch_page(build_page(demo), options.host, options.port)
    return 0


def _chosen_data(options: argparse.Namespace) -> DataConfig | None:
    """The images of the command line, or of the run's recipe; `None` where neither names any, or where none are wanted."""
    if options.dataset == "none":
        return None
    if options.dataset is None and not (Path(options.checkpoint) / "recipe.yaml").is_file():
        return None
    return replace(data_config(options), num_workers=0)  # a page's few images are not worth processes of their own


def _open(options: argparse.Namespace) -> DemoModel:
    data = _chosen_data(options)
    demo = open_demo_model(options.checkpoint, device=options.device)
    if data is not None:
        try:
            demo.source = open_images(data)
        except ValueError as error:
            if options.dataset is not None:
                raise
            print(f"The run's own images cannot be opened, so there are no examples and neighbours: {error}")
    return demo
