from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModel, ViTConfig

from ldae.data import DataConfig
from ldae.demo.exhibit import Exhibit, open_exhibit, psnr
from tests.demo.conftest import STORED


def values(picture: PIL.Image.Image) -> np.ndarray:
    return np.asarray(picture)


def test_denoising_shows_more_noise_at_larger_t_and_the_same_at_the_same(exhibit: Exhibit) -> None:
    image = exhibit.examples(3)[2]
    little, much, again = (exhibit.denoise(image, t) for t in (10, 900, 900))
    shown = values(little.clean)
    assert shown.shape == (256, 256, 3)
    assert np.array_equal(shown[::16, ::16], image.transpose(1, 2, 0)), "pixels are squares, nothing is smoothed"
    error = [np.abs(values(d.noisy).astype(float) - shown).mean() for d in (little, much)]
    assert error[1] > 2 * error[0] > 0
    assert not np.array_equal(values(little.denoised), values(much.denoised))
    assert np.array_equal(values(much.noisy), values(again.noisy))
    assert not np.array_equal(values(exhibit.denoise(image, 900, seed=1).noisy), values(much.noisy))
    assert little.caption.startswith("t = 10: signal γ = ") and "denoised" in much.caption


def test_psnr_of_a_known_error() -> None:
    assert psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5)) == pytest.approx(20, abs=1e-3)


def test_what_is_no_image_is_refused_in_words(exhibit: Exhibit, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be shown: not an image\. Choose a picture"):
        exhibit.read(text_file)
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"0" * 50)
    with pytest.raises(ValueError, match="cannot be shown: "):
        exhibit.read(tmp_path / "cut.jpg")
    PIL.Image.new("RGBA", (40, 30), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    pixels, note = exhibit.read(tmp_path / "clear.png")
    assert pixels.shape == (3, 16, 16) and (pixels == 255).all()
    assert note == "The picture was resized to 16x16 and cropped to its centre, transparency."


def test_patch_colours_differ_by_layer_and_time_step(exhibit: Exhibit) -> None:
    image = exhibit.examples(3)[2]
    default = exhibit.patch_colours(image)
    assert default.size == (256, 256)
    assert np.array_equal(
        values(default), values(exhibit.patch_colours(image, exhibit.default_layer, exhibit.config.feature_timestep))
    )
    other = next(layer for layer in exhibit.layers if layer != exhibit.default_layer)
    assert not np.array_equal(values(default), values(exhibit.patch_colours(image, other)))
    assert not np.array_equal(values(default), values(exhibit.patch_colours(image, timestep=900)))


def test_the_grid_has_a_row_a_layer_and_a_column_a_time_step(exhibit: Exhibit) -> None:
    said: list[str] = []
    grid = exhibit.feature_grid(exhibit.examples(1)[0], lambda share, activity: said.append(activity))
    layers, steps = exhibit.grid_layers(), exhibit.grid_timesteps()
    assert exhibit.default_layer in layers and exhibit.config.feature_timestep in steps and len(steps) == 5
    assert grid.width == 6 + 5 * (96 + 6) and grid.height > len(layers) * 96
    assert len(said) == len(layers) and said[-1].endswith(f"({len(layers)} of {len(layers)} layers)")


def test_the_nearest_neighbour_of_an_image_of_the_set_is_itself(exhibit: Exhibit) -> None:
    image, said = exhibit.examples(8)[5], []
    found = exhibit.neighbours(image, 4, lambda share, activity: said.append((share, activity)))
    captions = [caption for _, caption in found]
    assert len(found) == 4 and captions[0] == "1.00 · 7"
    assert np.array_equal(values(found[0][0])[::8, ::8], image.transpose(1, 2, 0))
    similarities = [float(caption.split(" ")[0]) for caption in captions]
    assert similarities == sorted(similarities, reverse=True) and similarities[-1] < 1
    assert said == [] or said[0] == (0.0, "Features of digits (test): 0 of 360 images, once")
    assert exhibit.num_searched == 360
    exhibit.neighbours(image, 4, lambda share, activity: pytest.fail("the features are computed once"))


def test_samples_depend_on_the_seed(exhibit: Exhibit) -> None:
    said: list[float] = []
    first, again, other = (
        exhibit.samples(5, 2, seed, report=lambda share, activity: said.append(share)) for seed in (0, 0, 1)
    )
    assert np.array_equal(values(first), values(again)) and not np.array_equal(values(first), values(other))
    assert said[:3] == [0, 0.8, 1]


def test_what_it_says_of_itself(exhibit: Exhibit) -> None:
    assert "M weights; it sees images at 16x16, and runs on cpu" in exhibit.description
    if exhibit.is_ddae:
        assert exhibit.description.startswith("DDAE: a UNet2DModel") and exhibit.sampling_note.startswith("From noise")
    else:
        assert (
            exhibit.description.startswith("l-DAE: 2 encoder and 1 decoder") and "fragments" in exhibit.sampling_note
        )


def test_an_encoder_alone_has_features_and_no_samples(tmp_path: Path) -> None:
    AutoModel.from_pretrained(STORED / "ldae").save_pretrained(tmp_path / "encoder")
    exhibit = open_exhibit(str(tmp_path / "encoder"), device="cpu")
    image = np.zeros((3, 16, 16), np.uint8)
    assert exhibit.name == "encoder" and exhibit.layers == [1, 2] and exhibit.examples() == []
    assert exhibit.patch_colours(image).size == (256, 256)
    for refused in (lambda: exhibit.denoise(image, 10), lambda: exhibit.samples(1, 1)):
        with pytest.raises(ValueError, match="encoder holds an encoder alone"):
            refused()
    with pytest.raises(ValueError, match="give --dataset"):
        exhibit.neighbours(image)


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_exhibit(str(tmp_path / "nothing"))
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model of type 'vit'; the page shows l-DAE and DDAE models"):
        open_exhibit(str(tmp_path))
    with pytest.raises(ValueError, match="nowhere"):
        open_exhibit(str(STORED / "ldae"), DataConfig(str(tmp_path / "nowhere")))
