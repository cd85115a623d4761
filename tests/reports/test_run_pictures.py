"""Pictures of every kind of model: that they can be drawn, and what is in them."""

import itertools
import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from ldae import LDAEConfig, LDAEForPreTraining
from ldae.data import DataConfig, open_images
from ldae.reports.curves import training_figure
from ldae.reports.run_pictures import (
    denoising_figure,
    draw_run_pictures,
    filters_figure,
    noise_figure,
    reconstruction_figure,
    schedule_figure,
)


SIDE, SHOWN = 16, 3
INPUT_SPACES = ("latent", "image")
TARGETS = ("noise", "latent", "projected_image", "image")
SCHEDULES = ("linear_beta", "linear_gamma2", "linear_sigma", "constant")
TRAIN = [{"event": "train", "images": images, "loss": 1 / images} for images in (32, 64, 96)]
PROBES = [{"event": "probe", "images": images, "ridge_accuracy": 0.5, "knn_accuracy": 0.4} for images in (32, 96)]


def make_model(**fields) -> LDAEForPreTraining:
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "num_attention_heads": 2}
    config = LDAEConfig(image_size=SIDE, patch_size=4, intermediate_size=32, latent_dim=5, **tiny, **fields)
    model = LDAEForPreTraining(config).eval()
    for parameter in model.parameters():  # zero gates would hide what the blocks do
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def make_pixels(channels: int = 3) -> torch.Tensor:
    return torch.rand(SHOWN, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def canvas_of(figure: Figure) -> np.ndarray:
    """The one picture of a figure of rows of images, (H, W, 3)."""
    (image,) = figure.axes[0].images
    return np.asarray(image.get_array())


def row_of(figure: Figure, row: int, side: int = SIDE) -> np.ndarray:
    gap = max(1, side // 12)
    top = row * (side + gap)
    return canvas_of(figure)[top : top + side]


def assert_rows(figure: Figure, rows: int, columns: int = SHOWN, side: int = SIDE) -> None:
    gap = max(1, side // 12)
    canvas = canvas_of(figure)
    assert canvas.shape == (rows * (side + gap) - gap, columns * (side + gap) - gap, 3)
    assert np.isfinite(canvas).all() and canvas.min() >= 0 and canvas.max() <= 1
    assert len(figure.axes[0].get_yticklabels()) == rows


@pytest.mark.parametrize(
    ("input_space", "prediction_target", "noise_schedule"), list(itertools.product(INPUT_SPACES, TARGETS, SCHEDULES))
)
def test_every_kind_of_model_can_be_drawn(input_space, prediction_target, noise_schedule):
    model = make_model(
        input_space=input_space,
        prediction_target=prediction_target,
        noise_schedule=noise_schedule,
        loss_weighting="uniform" if prediction_target == "noise" else "inverse_variance",
    )
    pixels = make_pixels()
    denoising = denoising_figure(model, pixels)
    assert_rows(denoising, rows=3 if noise_schedule == "constant" else 7)
    assert_rows(noise_figure(model, pixels), rows=3)
    clean, noisy, denoised = (row_of(denoising, row) for row in range(3))
    shown = (pixels[1].permute(1, 2, 0).numpy() + 1) / 2
    gap = SIDE // 12
    assert np.allclose(clean[:, SIDE + gap : 2 * SIDE + gap], shown, atol=1e-6)
    assert np.abs(noisy - clean).mean() > 0.05 and np.abs(denoised - noisy).mean() > 0.01
    lines = schedule_figure(model).axes[0].get_lines()
    assert [len(line.get_xdata()) for line in lines] == [model.config.num_train_timesteps] * 3


def test_noisy_images_grow_noisier_with_t():
    model, pixels = make_model(), make_pixels()
    figure = denoising_figure(model, pixels)
    clean = row_of(figure, 0)
    distances = [np.abs(row_of(figure, row) - clean).mean() for row in (1, 3, 5)]
    assert distances == sorted(distances) and distances[0] < distances[2]


def test_one_channel_is_drawn_grey():
    model = make_model(num_channels=1)
    figure = denoising_figure(model, make_pixels(channels=1))
    assert_rows(figure, rows=7)
    canvas = canvas_of(figure)
    assert np.array_equal(canvas[..., 0], canvas[..., 1]) and np.array_equal(canvas[..., 0], canvas[..., 2])
    assert_rows(noise_figure(model, make_pixels(channels=1)), rows=3)


def test_reconstructions_stand_under_their_originals():
    tokenizer, pixels = make_model().ldae.tokenizer, make_pixels()
    figure = reconstruction_figure(tokenizer, pixels)
    assert_rows(figure, rows=2)
    decoded = tokenizer.decode_images(tokenizer.encode_images(pixels), SIDE, SIDE)
    for row, images in enumerate((pixels, decoded)):
        expected = ((images[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
        assert np.allclose(row_of(figure, row)[:, :SIDE], expected, atol=1e-6)


@pytest.mark.parametrize(("latent_dim", "rows", "columns"), [(5, 1, 5), (12, 2, 8)])
def test_filters_are_the_rows_of_the_pca_as_patches(latent_dim, rows, columns):
    torch.manual_seed(0)
    config = LDAEConfig.from_size("nano", image_size=SIDE, patch_size=4, latent_dim=latent_dim)
    model = LDAEForPreTraining(config)
    figure = filters_figure(model.ldae.tokenizer)
    assert_rows(figure, rows, columns, side=4)
    first = model.ldae.tokenizer.components[0].view(3, 4, 4)
    expected = ((first / first.abs().max() + 1) / 2).permute(1, 2, 0).numpy()
    assert np.allclose(canvas_of(figure)[:4, :4], expected, atol=1e-6)


def test_training_figure_has_a_second_panel_where_probes_were_logged():
    assert len(training_figure(TRAIN).axes) == 1
    loss, accuracy = training_figure([*TRAIN, *PROBES, {"event": "finished", "images": 96}]).axes
    assert loss.get_lines()[0].get_xdata().tolist() == [32, 64, 96]
    assert [line.get_ydata().tolist() for line in accuracy.get_lines()] == [[0.5, 0.5], [0.4, 0.4]]


def test_a_folder_gets_its_pictures_with_and_without_metrics(tmp_path):
    make_model().save_pretrained(tmp_path)
    source = open_images(DataConfig("digits", num_workers=0))
    names = ["denoising.png", "noise.png", "schedule.png", "filters.png"]
    assert draw_run_pictures(tmp_path, source, images=2) == [tmp_path / "pictures" / name for name in names]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted(names)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in TRAIN))
    assert draw_run_pictures(tmp_path, source, images=2)[-1] == tmp_path / "pictures" / "training.png"
    for path in (tmp_path / "pictures").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG" and np.asarray(picture.convert("L")).std() > 1
