"""The page: Gradio's controls, outputs and messages; a [`~ldae.demo.model.DemoModel`] draws the pictures."""

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ldae.demo.model import DemoModel, picture_of
from ldae.demo.tabs import (
    NO_IMAGE,
    ONE_AT_A_TIME,
    UNDOCUMENTED,
    denoise_tab,
    duplicates_tab,
    features_tab,
    gallery_box,
    grid_tab,
    neighbours_tab,
    samples_tab,
    training_tab,
)
from ldae.demo.watch import WatchedRun


THEME = gr.themes.Default(
    primary_hue="blue",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # installed on the visitor's machine: the page loads nothing from other servers
    font_mono=["ui-monospace", "monospace"],
)
CSS = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
.status { min-height: 3em; }
.side-by-side { flex-wrap: nowrap !important; gap: 8px !important; }
.side-by-side > * { min-width: 0 !important; gap: 4px !important; }
.name { text-align: center; opacity: 0.8; }
.pixels img { image-rendering: pixelated; }
.tiles .grid-wrap { min-height: 0 !important; max-height: none !important; padding: 0 !important; }
.tiles .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#pairs .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
#pairs button { aspect-ratio: 2 !important; }
.tiles .caption-label { padding: 1px 5px !important; font-size: 12px !important; max-width: 100% !important; }
.tab-container button { padding: 0 8px !important; }
.course, #newest { max-width: 640px; }
:focus-visible { outline: 2px solid var(--color-accent) !important; outline-offset: 2px !important; }
footer .divider { display: none !important; }
.strip button { aspect-ratio: 1 !important; height: auto !important; min-height: 0 !important; }
@media (max-width: 640px) { /* on a phone, keep the pictures near the top */
  .strip .grid-container { grid-template-columns: repeat(8, minmax(0, 1fr)) !important; gap: 4px !important; }
  #pairs .caption-label { font-size: 11px !important; }
}
"""
# Styles outside the part that Gradio's `css` reaches.
HEAD = """<style>
@media (max-width: 640px) {
  .gradio-container .main.app { padding: 12px !important; }
}
</style>"""
NO_MODEL = (
    "No model has been saved here yet, so this page shows the training alone. Start it again after the first "
    "checkpoint to explore the model."
)


def build_page(demo: DemoModel | None, run: WatchedRun | None = None) -> gr.Blocks:
    """Build the page.

    Args:
        demo ([`~ldae.demo.model.DemoModel`], *optional*): The checkpoint to show. Tabs that it cannot fill are left
            out: denoising and samples without a decoder, neighbours without images to search. Without a checkpoint the
            page shows the training alone.
        run ([`~ldae.demo.watch.WatchedRun`], *optional*): The run that trains the checkpoint, to be followed.

    Returns:
        `gradio.Blocks`, to be started by [`launch_page`].
    """
    name = demo.name if demo is not None else run.name if run is not None else ""
    with gr.Blocks(title=f"{name} · ldae", analytics_enabled=False) as page:
        if demo is not None:
            gr.Markdown(f"# {name}\n{demo.description}")
            _explore(demo, run, page)
        elif run is not None:
            gr.Markdown(f"# {name}\n{NO_MODEL}")
            with gr.Tabs(overflow_behavior="wrap"):
                training_tab(run, page)
    return page


def _explore(demo: DemoModel, run: WatchedRun | None, page: gr.Blocks) -> None:
    """Add the choice of an image, and the tabs that show what the model makes of it."""
    examples = demo.examples()
    image = gr.State(None)  # (C, S, S) in uint8, of this visitor
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            upload = gr.Image(label="Your picture", sources=["upload", "clipboard"], height=250, buttons=[])
            status = gr.Markdown(NO_IMAGE, elem_id="status", elem_classes="status")
            if demo.source is not None:
                gr.Markdown(f"**Examples** from {demo.source.description}")
            pictures = [picture_of(example) for example in examples]
            look: dict[str, Any] = {"allow_preview": False, "elem_classes": ["tiles", "strip"]}
            strip = gallery_box("examples", pictures, visible=bool(examples), **look)
        with gr.Column(scale=3, min_width=320), gr.Tabs(overflow_behavior="wrap"):
            denoises = demo.pipeline is not None
            parts = [denoise_tab(demo, image)] if denoises else []
            parts += [features_tab(demo, image), grid_tab(demo, image)]
            if demo.source is not None:
                parts.append(neighbours_tab(demo, image))
                duplicates_tab(demo)
            if denoises:
                samples_tab(demo)
            if run is not None:
                training_tab(run, page)
    if not denoises:
        gr.Markdown("This checkpoint is only an encoder: it neither denoises nor generates.")

    def read(file: dict[str, Any] | None) -> tuple[np.ndarray | None, Any, str]:
        if file is None:
            return None, gr.skip(), NO_IMAGE
        try:
            if not Path(file["path"]).resolve().is_relative_to(Path(upload.GRADIO_CACHE).resolve()):
                # A forged request may name another file on this machine.
                raise ValueError("This file was not uploaded here.")
            pixels, note = demo.read(file["path"])
        except ValueError as error:
            gr.Warning(str(error), title="No picture")
            return None, None, f"⚠️ {error}"
        return pixels, gr.skip(), note

    def choose(event: gr.SelectData) -> tuple[np.ndarray, Any, str]:
        example = examples[event.index]
        return example, picture_of(example), f"Example {event.index + 1} is shown."

    places = [image, upload, status]
    quiet: dict[str, Any] = {"show_progress": "hidden"}
    arrivals = [
        # Without preprocessing, a file that is no image gets our message instead of Pillow's.
        upload.input(read, upload, places, api_name="read", preprocess=False, **quiet),
        upload.clear(lambda: (None, gr.skip(), NO_IMAGE), None, places, **UNDOCUMENTED, **quiet),
        strip.select(choose, None, places, **UNDOCUMENTED, **quiet),
    ]
    for arrival in arrivals:
        for part in parts:
            arrival.then(part.show, [image, *part.inputs], list(part.outputs), **ONE_AT_A_TIME, **UNDOCUMENTED)


def launch_page(page: gr.Blocks, host: str | None = None, port: int | None = None, wait: bool = True) -> str:
    """Start the page.

    Args:
        page (`gradio.Blocks`): The page that [`build_page`] built.
        host (`str`, *optional*): Address to listen on: by default `GRADIO_SERVER_NAME`, which a Space sets, or
            127.0.0.1; `"0.0.0.0"` accepts other machines.
        port (`int`, *optional*): Port; by default `GRADIO_SERVER_PORT`, or the first free one from 7860.
        wait (`bool`, defaults to `True`): Whether to return only when the page is stopped.

    Returns:
        `str`: the page's address.

    Raises:
        ValueError: If the port is taken.
    """
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            theme=THEME,
            css=CSS,
            head=HEAD,
            prevent_thread_lock=not wait,
            max_file_size="30mb",
            ssr_mode=False,
            footer_links=["api"],
        )
    except OSError as error:
        raise ValueError(f"port={port} of {host} is not free ({error}); choose another --port.") from error
    return url
