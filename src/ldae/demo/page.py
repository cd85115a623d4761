"""The page: Gradio's controls, outputs and messages; a [`~ldae.demo.model.DemoModel`] draws the pictures."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ldae.demo.model import DemoModel, layer_name, picture_of


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
.tiles .caption-label { padding: 1px 5px !important; font-size: 12px !important; max-width: 100% !important; }
footer .divider { display: none !important; }
.strip button { aspect-ratio: 1 !important; height: auto !important; min-height: 0 !important; }
@media (max-width: 640px) { /* on a phone, keep the tabs on one line and the pictures near the top */
  .strip .grid-container { grid-template-columns: repeat(8, minmax(0, 1fr)) !important; gap: 4px !important; }
  .tab-container button { padding: 0 6px !important; font-size: 13px !important; }
}
"""
# Styles outside the part that Gradio's `css` reaches. On a phone, tabs that do not fit can be scrolled sideways.
HEAD = """<style>
@media (max-width: 640px) {
  .gradio-container .main.app { padding: 12px !important; }
  .tabs [role=tablist] { overflow-x: auto !important; max-width: calc(100vw - 24px) !important; }
}
</style>"""
NO_IMAGE = "Drop a picture, or choose an example."
# Run one computation at a time for all visitors, because a pipeline keeps the state of its sampler.
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
UNDOCUMENTED: dict[str, Any] = {"api_visibility": "undocumented"}


@dataclass(frozen=True)
class TabUpdate:
    """Outputs of a tab that depend on the image: `show(image, *inputs)` returns the `outputs`."""

    show: Callable[..., Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def build_page(demo: DemoModel) -> gr.Blocks:
    """Build the page.

    Args:
        demo ([`~ldae.demo.model.DemoModel`]): The checkpoint to show. Tabs that it cannot fill are left out: denoising
            and samples without a decoder, neighbours without images to search.

    Returns:
        `gradio.Blocks`, to be started by [`launch_page`].
    """
    examples = demo.examples()
    with gr.Blocks(title=f"{demo.name} · ldae", analytics_enabled=False) as page:
        gr.Markdown(f"# {demo.name}\n{demo.description}")
        image = gr.State(None)  # (C, S, S) in uint8, of this visitor
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                upload = gr.Image(label="Your picture", sources=["upload", "clipboard"], height=250, buttons=[])
                status = gr.Markdown(NO_IMAGE, elem_id="status", elem_classes="status")
                if demo.source is not None:
                    gr.Markdown(f"**Examples** from {demo.source.description}")
                strip = gr.Gallery(
                    [picture_of(example) for example in examples],
                    label="Examples",
                    show_label=False,
                    container=False,
                    columns=4,
                    height="auto",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    visible=bool(examples),
                    elem_id="examples",
                    elem_classes=["tiles", "strip"],
                )
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                denoises = demo.pipeline is not None
                parts = [_denoise_tab(demo, image)] if denoises else []
                parts += [_features_tab(demo, image), _grid_tab(demo, image)]
                if demo.source is not None:
                    parts.append(_neighbours_tab(demo, image))
                if denoises:
                    _samples_tab(demo)
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
    return page


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


def _denoise_tab(demo: DemoModel, image: gr.State) -> TabUpdate:
    last = demo.config.num_train_timesteps - 1
    with gr.Tab("Denoise"):
        t = gr.Slider(0, last, value=(last + 1) // 4, step=1, label="t: how much noise", elem_id="t")
        label = _class_choice(demo)
        with gr.Row(elem_classes="side-by-side"):
            noise = demo.noisy_name
            pictures = [
                _picture(label, f"the {label} picture", name)
                for name, label in (("clean", "clean"), ("noisy", noise), ("denoised", "denoised"))
            ]
        caption = gr.Markdown(NO_IMAGE, elem_classes="status")
        seed = gr.State(0)
        another = gr.Button("Other noise", size="sm")

    @_with_messages
    def show(pixels: np.ndarray | None, timestep: int, number: int, class_label: int | None) -> tuple[Any, ...]:
        if pixels is None:
            return None, None, None, NO_IMAGE
        shown = demo.denoise(pixels, int(timestep), number, class_label)
        return shown.clean, shown.noisy, shown.denoised, shown.caption

    part = TabUpdate(show, [t, seed, label], [*pictures, caption])
    settings: dict[str, Any] = {"inputs": [image, *part.inputs], "outputs": list(part.outputs), **ONE_AT_A_TIME}
    follow: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"}
    gr.on([t.change, label.change], show, api_name="denoise", **follow, **settings)
    drawn = another.click(lambda number: number + 1, seed, seed, show_progress="hidden", **UNDOCUMENTED)
    drawn.then(show, show_progress="hidden", **settings, **UNDOCUMENTED)
    return part


def _features_tab(demo: DemoModel, image: gr.State) -> TabUpdate:
    c = demo.config
    with gr.Tab("Features"):
        gr.Markdown(
            "The three principal components of the patches' features as red, green and blue: the model sees patches "
            "of one colour as similar."
        )
        with gr.Row():
            names = [(layer_name(layer), layer) for layer in demo.layers]
            layer = gr.Dropdown(names, value=demo.default_layer, label="layer", elem_id="layer", min_width=220)
            t = gr.Slider(
                0, c.num_train_timesteps - 1, c.feature_timestep, step=1, label="t", elem_id="feature_t", min_width=150
            )
        with gr.Row(elem_classes="side-by-side"):
            pictures = [
                _picture("clean", "the clean picture"),
                _picture("features", "its patch features as colours", "pca"),
            ]
        caption = gr.Markdown(NO_IMAGE, elem_classes="status")

    @_with_messages
    def show(pixels: np.ndarray | None, layer: Any, timestep: int) -> tuple[Any, ...]:
        if pixels is None:
            return None, None, NO_IMAGE
        colours = demo.patch_colours(pixels, layer, int(timestep))
        place = layer_name(layer)
        return picture_of(pixels), colours, f"Features of {place} at t = {int(timestep)}, read from the clean picture."

    part = TabUpdate(show, [layer, t], [*pictures, caption])
    settings: dict[str, Any] = {"inputs": [image, *part.inputs], "outputs": list(part.outputs), **ONE_AT_A_TIME}
    follow: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"}
    gr.on([layer.change, t.change], show, api_name="features", **follow, **settings)
    return part


def _grid_tab(demo: DemoModel, image: gr.State) -> TabUpdate:
    layers, steps = demo.grid_layers(), demo.grid_timesteps()
    ready = f"Features of {len(layers)} layers at t = {', '.join(map(str, steps))}, each with its own colours."
    with gr.Tab("Layer × t"):
        caption = gr.Markdown(f"{ready} {NO_IMAGE}")
        button = gr.Button("Draw the grid", variant="primary", elem_id="draw")
        picture = _picture("", "patch features by layer and time step, as colours", "grid")

    @_with_messages
    def draw(pixels: np.ndarray | None, progress: Any = gr.Progress()) -> tuple[Any, str]:  # noqa: B008 - for Gradio
        image = _require_image(pixels)
        begin = time.monotonic()
        return demo.feature_grid(image, progress), f"{ready} Drawn in {time.monotonic() - begin:.1f} s."

    button.click(draw, image, [picture, caption], api_name="grid", show_progress_on=picture, **ONE_AT_A_TIME)
    return TabUpdate(
        lambda pixels: (None, ready if pixels is not None else f"{ready} {NO_IMAGE}"), [], [picture, caption]
    )


def _neighbours_tab(demo: DemoModel, image: gr.State) -> TabUpdate:
    assert demo.source is not None
    ready = (
        f"The most similar images of {demo.source.description}, nearest first, with similarity (the cosine of mean "
        "features) and class."
    )
    with gr.Tab("Neighbours"):
        caption = gr.Markdown(f"{ready} {NO_IMAGE}")
        button = gr.Button("Find neighbours", variant="primary", elem_id="find")
        gallery = gr.Gallery(
            label="neighbours",
            show_label=False,
            container=False,
            columns=4,
            height="auto",
            interactive=False,
            buttons=[],
            elem_id="neighbours",
            elem_classes=["pixels", "tiles"],
        )

    @_with_messages
    def find(pixels: np.ndarray | None, progress: Any = gr.Progress()) -> tuple[Any, str]:  # noqa: B008 - for Gradio
        image = _require_image(pixels)
        begin = time.monotonic()
        found = demo.neighbours(image, report=progress)
        return found, f"{ready} {demo.num_searched:,} images were searched in {time.monotonic() - begin:.1f} s."

    def show(pixels: np.ndarray | None) -> tuple[Any, str]:
        if pixels is None or not demo.num_searched:  # the first search takes a while, and waits for the button
            return [], ready if pixels is not None else f"{ready} {NO_IMAGE}"
        return find(pixels)

    button.click(find, image, [gallery, caption], api_name="neighbours", show_progress_on=gallery, **ONE_AT_A_TIME)
    return TabUpdate(show, [], [gallery, caption])


def _samples_tab(demo: DemoModel) -> None:
    with gr.Tab("Samples"):
        caption = gr.Markdown(demo.sampling_note)
        with gr.Row():
            count = gr.Slider(1, 16, 8, step=1, label="images", min_width=120)
            steps = gr.Slider(
                1, max(demo.default_steps, 100), demo.default_steps, step=1, label="steps", min_width=120
            )
            seed = gr.Number(0, label="seed", precision=0, min_width=80)
        label = _class_choice(demo)
        button = gr.Button("Generate", variant="primary", elem_id="generate")
        picture = _picture("", "generated images", "samples")

    @_with_messages
    def generate(
        count: int,
        steps: int,
        seed: int | None,
        class_label: int | None,
        progress: Any = gr.Progress(),  # noqa: B008 - Gradio finds it there
    ) -> tuple[Any, str]:
        begin = time.monotonic()
        grid = demo.samples(int(count), int(steps), int(seed or 0), class_label, progress)
        return grid, f"{demo.sampling_note} {int(count)} images took {time.monotonic() - begin:.1f} s."

    button.click(
        generate,
        [count, steps, seed, label],
        [picture, caption],
        api_name="samples",
        show_progress_on=picture,
        **ONE_AT_A_TIME,
    )


def _picture(name: str, alt: str, elem_id: str | None = None) -> gr.Image:
    """Add a picture with its name above it; Gradio's own label would cover a part of it."""
    with gr.Column(min_width=0):
        if name:
            gr.Markdown(name, elem_classes="name")
        return gr.Image(
            label=name or alt,
            show_label=False,
            alt_text=alt,
            elem_id=elem_id,
            interactive=False,
            buttons=["download"],
            format="png",
            elem_classes="pixels" if name else None,
        )


def _class_choice(demo: DemoModel) -> gr.Dropdown:
    """Add a choice of classes, hidden if the model has none."""
    names = [("none", None), *((str(k), k) for k in range(demo.config.num_class_embeds or 0))]
    return gr.Dropdown(names, value=None, label="class", visible=len(names) > 1)


def _require_image(pixels: np.ndarray | None) -> np.ndarray:
    if pixels is None:
        raise ValueError(NO_IMAGE)
    return pixels


def _with_messages(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that its ValueErrors become messages on the page."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except ValueError as error:
            raise gr.Error(str(error), title="Error", print_exception=False) from error

    return call
