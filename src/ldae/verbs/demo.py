"""`ldae demo CHECKPOINT`: a page to look at a checkpoint with, on this machine or as a Space of the Hub."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ldae.data import DataConfig, ImageSource, open_images
from ldae.demo.model import DemoModel, open_demo_model
from ldae.demo.space import export_space
from ldae.demo.watch import WatchedRun
from ldae.verbs.inputs import data_config
from ldae.verbs.options.use import DemoOptions


def demo(options: DemoOptions) -> int:
    """Run `ldae demo`."""
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
    load = _loader(options)
    run = WatchedRun.find(options.checkpoint, load)
    if run is not None:
        run.load_newest()
    model = load() if run is None else run.demo
    if model is None:
        print(f"{options.checkpoint} holds no model yet; the page shows its training.")
    else:
        print(f"{model.name}. {model.description}")
        print(f"Neighbours: {model.source.description if model.source else 'none; --dataset names a set of images'}")
    launch_page(build_page(model, run), options.host, options.port)
    return 0


def _chosen_data(options: DemoOptions) -> DataConfig | None:
    """Return the images of the command line or the run's recipe; `None` if neither names any or none are wanted."""
    if options.dataset == "none":
        return None
    if options.dataset is None and not (Path(options.checkpoint) / "recipe.yaml").is_file():
        return None
    return replace(data_config(options), num_workers=0)  # a page's few images are not worth processes of their own


def _loader(options: DemoOptions) -> Callable[[], DemoModel]:
    """Return a function that loads the checkpoint, again whenever it is called; its images are opened once."""
    source = functools.cache(lambda: _open_source(options))

    def load() -> DemoModel:
        demo = open_demo_model(options.checkpoint, device=options.device)
        demo.source = source()
        return demo

    return load


def _open_source(options: DemoOptions) -> ImageSource | None:
    data = _chosen_data(options)
    if data is None:
        return None
    try:
        return open_images(data)
    except ValueError as error:
        if options.dataset is not None:
            raise
        print(f"The run's own images cannot be opened, so there are no examples and neighbours: {error}")
        return None
