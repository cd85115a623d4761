"""The page's tabs: each adds its controls, and returns what it shows of a new image."""

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from ldae.demo.model import DemoModel, picture_of
from ldae.demo.watch import WatchedRun
from ldae.evaluation.encoder import name_layer


NO_IMAGE = "Drop a picture, or choose an example."
REFRESH_SECONDS = 5
# Run one computation at a time for all visitors, because a pipeline keeps the state of its sampler.
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
UNDOCUMENTED: dict[str, Any] = {"api_visibility": "undocumented"}
FOLLOW: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"}  # a control that is moved


@dataclass(frozen=True)
class TabUpdate:
    """Outputs of a tab that depend on the image: `show(image, *inputs)` returns the `outputs`."""

    show: Callable[..., Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def denoise_tab(demo: DemoModel, image: gr.State) -> TabUpdate:
    """Add the tab that shows the image clean, noisy and denoised."""
    last = demo.config.num_train_timesteps - 1
    with gr.Tab("Denoise"):
        t = gr.Slider(0, last, value=(last + 1) // 4, step=1, label="t: how much noise", elem_id="t")
        label = _class_choice(demo)
        with gr.Row(elem_classes="side-by-side"):
            names = {"clean": "clean", "noisy": demo.family.noisy, "denoised": "denoised"}
            pictures = [picture_box(shown, f"the {shown} picture", name) for name, shown in names.items()]
        caption = gr.Markdown(NO_IMAGE, elem_classes="status")
        seed = gr.State(0)
        another = gr.Button("Other noise", size="sm")

    @_with_messages
    def show(pixels: np.ndarray | None, timestep: int, number: int, class_label: int | None) -> tuple[Any, ...]:
        if pixels is None:
            return None, None, None, NO_IMAGE
        shown = demo.denoise(pixels, int(timestep), number, class_label)
        return shown.clean, shown.noisy, shown.denoised, shown.caption

    inputs, outputs = [t, seed, label], [*pictures, caption]
    settings: dict[str, Any] = {"inputs": [image, *inputs], "outputs": outputs, **ONE_AT_A_TIME}
    gr.on([t.change, label.change], show, api_name="denoise", **FOLLOW, **settings)
    drawn = another.click(lambda number: number + 1, seed, seed, show_progress="hidden", **UNDOCUMENTED)
    drawn.then(show, show_progress="hidden", **settings, **UNDOCUMENTED)
    return TabUpdate(show, inputs, outputs)


def features_tab(demo: DemoModel, image: gr.State) -> TabUpdate:
    """Add the tab that shows the image's patch features at one layer and time step."""
    last = demo.config.num_train_timesteps - 1
    with gr.Tab("Features"):
        gr.Markdown(
            "The three principal components of the patches' features as red, green and blue: the model sees patches "
            "of one colour as similar."
        )
        with gr.Row():
            names = [(name_layer(layer), layer) for layer in demo.layers]
            layer = gr.Dropdown(names, value=demo.default_layer, label="layer", elem_id="layer", min_width=220)
            t = gr.Slider(0, last, demo.config.feature_timestep, step=1, label="t", elem_id="feature_t", min_width=150)
        with gr.Row(elem_classes="side-by-side"):
            clean = picture_box("clean", "the clean picture")
            features = picture_box("features", "its patch features as colours", "pca")
        caption = gr.Markdown(NO_IMAGE, elem_classes="status")

    @_with_messages
    def show(pixels: np.ndarray | None, layer: Any, timestep: int) -> tuple[Any, ...]:
        if pixels is None:
            return None, None, NO_IMAGE
        colours = demo.patch_colours(pixels, layer, int(timestep))
        said = f"Features of {name_layer(layer)} at t = {int(timestep)}, read from the clean picture."
        return picture_of(pixels), colours, said

    inputs, outputs = [layer, t], [clean, features, caption]
    changes = [layer.change, t.change]
    gr.on(changes, show, [image, *inputs], outputs, api_name="features", **FOLLOW, **ONE_AT_A_TIME)
    return TabUpdate(show, inputs, outputs)


def grid_tab(demo: DemoModel, image: gr.State) -> TabUpdate:
    """Add the tab that shows the image's patch features at many layers and time steps."""
    layers, steps = demo.grid_layers(), demo.grid_timesteps()
    ready = f"Features of {len(layers)} layers at t = {', '.join(map(str, steps))}, each with its own colours."
    with gr.Tab("Layer × t"):
        caption = gr.Markdown(f"{ready} {NO_IMAGE}")
        button = gr.Button("Draw the grid", variant="primary", elem_id="draw")
        picture = picture_box("", "patch features by layer and time step, as colours", "grid")

    @_with_messages
    def draw(pixels: np.ndarray | None, progress: Any = gr.Progress()) -> tuple[Any, str]:  # noqa: B008 - for Gradio
        image = _require_image(pixels)
        begin = time.monotonic()
        return demo.feature_grid(image, progress), f"{ready} Drawn in {time.monotonic() - begin:.1f} s."

    def show(pixels: np.ndarray | None) -> tuple[Any, str]:
        return None, ready if pixels is not None else f"{ready} {NO_IMAGE}"

    button.click(draw, image, [picture, caption], api_name="grid", show_progress_on=picture, **ONE_AT_A_TIME)
    return TabUpdate(show, [], [picture, caption])


def neighbours_tab(demo: DemoModel, image: gr.State) -> TabUpdate:
    """Add the tab that shows the images of the source that are most similar to the image."""
    assert demo.source is not None
    ready = (
        f"The most similar images of {demo.source.description}, nearest first, with similarity (the cosine of "
        "whitened mean features) and class."
    )
    with gr.Tab("Neighbours"):
        caption = gr.Markdown(f"{ready} {NO_IMAGE}")
        button = gr.Button("Find neighbours", variant="primary", elem_id="find")
        gallery = gallery_box("neighbours", elem_classes=["pixels", "tiles"])

    @_with_messages
    def find(pixels: np.ndarray | None, progress: Any = gr.Progress()) -> tuple[Any, str]:  # noqa: B008 - for Gradio
        image = _require_image(pixels)
        begin = time.monotonic()
        found = demo.search(progress).nearest(image)
        return found, f"{ready} {demo.num_searched:,} images were searched in {time.monotonic() - begin:.1f} s."

    def show(pixels: np.ndarray | None) -> tuple[Any, str]:
        if pixels is None or not demo.num_searched:  # the first search takes a while, and waits for the button
            return [], ready if pixels is not None else f"{ready} {NO_IMAGE}"
        return find(pixels)

    button.click(find, image, [gallery, caption], api_name="neighbours", show_progress_on=gallery, **ONE_AT_A_TIME)
    return TabUpdate(show, [], [gallery, caption])


def duplicates_tab(demo: DemoModel) -> None:
    """Add the tab that shows the pairs of images of the source that are most similar to each other."""
    assert demo.source is not None
    ready = (
        f"The pairs of images of {demo.source.description} that the model sees as most similar, closest first, with "
        "similarity, rows and class. Copies of one picture are near 1, also if one was resized or changed a little."
    )
    with gr.Tab("Duplicates"):
        caption = gr.Markdown(ready)
        least = gr.Slider(0.5, 1, 0.95, step=0.01, label="least similarity of a pair", elem_id="least")
        button = gr.Button("Find pairs", variant="primary", elem_id="find-pairs")
        gallery = gallery_box("pairs", columns=2, elem_classes=["pixels", "tiles"])

    @_with_messages
    def find(least: float, progress: Any = gr.Progress()) -> tuple[Any, str]:  # noqa: B008 - for Gradio
        pairs, total = demo.search(progress).closest_pairs(least)
        shown = f", and the {len(pairs)} closest are shown" if total > len(pairs) else ""
        found = f"{total:,} {'pair' if total == 1 else 'pairs'} of {demo.num_searched:,} images"
        return pairs, f"{ready} {found} {'is' if total == 1 else 'are'} at least {least:.2f} similar{shown}."

    def follow(least: float) -> tuple[Any, Any]:
        return find(least) if demo.num_searched else (gr.skip(), gr.skip())  # the first search waits for the button

    settings: dict[str, Any] = {"inputs": least, "outputs": [gallery, caption], **ONE_AT_A_TIME}
    button.click(find, api_name="pairs", show_progress_on=gallery, **settings)
    least.change(follow, **FOLLOW, **UNDOCUMENTED, **settings)


def samples_tab(demo: DemoModel) -> None:
    """Add the tab that generates images."""
    with gr.Tab("Samples"):
        caption = gr.Markdown(demo.sampling_note)
        with gr.Row():
            most = max(demo.default_steps, 100)
            count = gr.Slider(1, 16, 8, step=1, label="images", min_width=120)
            steps = gr.Slider(1, most, demo.default_steps, step=1, label="steps", min_width=120)
            seed = gr.Number(0, label="seed", precision=0, min_width=80)
        label = _class_choice(demo)
        button = gr.Button("Generate", variant="primary", elem_id="generate")
        picture = picture_box("", "generated images", "samples")

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

    inputs, outputs = [count, steps, seed, label], [picture, caption]
    button.click(generate, inputs, outputs, api_name="samples", show_progress_on=picture, **ONE_AT_A_TIME)


def training_tab(run: WatchedRun, page: gr.Blocks) -> None:
    """Add the tab that follows a run's folder while the page is open: its progress, curves and newest model."""
    with gr.Tab("Training"):
        status = gr.Markdown(elem_id="progress", elem_classes="status")
        look: dict[str, Any] = {"show_label": False, "container": False, "elem_classes": "course", "format": "png"}
        loss = gr.Plot(label="loss and learning rate", visible=False, elem_id="loss", **look)
        accuracy = gr.Plot(label="accuracy", visible=False, elem_id="accuracy", **look)
        caption = gr.Markdown(elem_id="newest-caption")
        denoised = picture_box("", "images denoised by the newest model", "newest", visible=False)
    timer = gr.Timer(REFRESH_SECONDS)
    shown_log, shown_model = gr.State(None), gr.State(None)  # what this visitor sees

    def follow_log(shown: Any) -> tuple[Any, ...]:
        state = run.log_state()
        if state == shown:
            return (gr.skip(),) * 4
        text, *figures = run.read_log()
        return state, text, *(gr.update(value=figure, visible=figure is not None) for figure in figures)

    def follow_model(shown: Any) -> tuple[Any, ...]:
        with suppress(ValueError):  # a model that is just being replaced; the next look finds it whole
            run.load_newest()
        state = run.picture_state()
        if state == shown:
            return (gr.skip(),) * 3
        drawn, text = run.draw_denoised()
        return state, text, gr.update(value=drawn, visible=drawn is not None)

    look_at = [page.load, timer.tick]
    outputs = [shown_log, status, loss, accuracy]
    gr.on(look_at, follow_log, shown_log, outputs, api_name="training", show_progress="hidden")
    outputs = [shown_model, caption, denoised]
    gr.on(look_at, follow_model, shown_model, outputs, api_name="newest", show_progress="hidden", **ONE_AT_A_TIME)


def gallery_box(elem_id: str, images: Any = None, columns: int = 4, **look: Any) -> gr.Gallery:
    """Add a gallery of images."""
    return gr.Gallery(
        images,
        label=elem_id.capitalize(),
        show_label=False,
        container=False,
        columns=columns,
        height="auto",
        interactive=False,
        buttons=[],
        elem_id=elem_id,
        **look,
    )


def picture_box(name: str, alt: str, elem_id: str | None = None, visible: bool = True) -> gr.Image:
    """Add a picture with its name above it; Gradio's own label would cover a part of it."""
    with gr.Column(min_width=0):
        if name:
            gr.Markdown(name, elem_classes="name")
        return gr.Image(
            label=name or alt,
            show_label=False,
            alt_text=alt,
            visible=visible,
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
