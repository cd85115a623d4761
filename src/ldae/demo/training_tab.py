"""The tab of a run that trains: where it stands, its curves, and what its newest model makes of two images."""

from contextlib import suppress
from typing import Any

import gradio as gr

from ldae.demo.tabs import ONE_AT_A_TIME, picture_box
from ldae.demo.watch import WatchedRun


REFRESH_SECONDS = 5


def training_tab(run: WatchedRun, page: gr.Blocks) -> None:
    """Add the tab, which follows the run's folder while the page is open.

    Args:
        run ([`~ldae.demo.watch.WatchedRun`]): The run.
        page (`gradio.Blocks`): The page that is being built.
    """
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

    settings: dict[str, Any] = {"triggers": [page.load, timer.tick], "show_progress": "hidden"}
    gr.on(
        fn=follow_log, inputs=shown_log, outputs=[shown_log, status, loss, accuracy], api_name="training", **settings
    )
    gr.on(
        fn=follow_model,
        inputs=shown_model,
        outputs=[shown_model, caption, denoised],
        api_name="newest",
        **settings,
        **ONE_AT_A_TIME,
    )
