from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModel, ViTConfig

from ldae.data import DataConfig, open_images
from ldae.demo.model import DemoModel, open_demo_model, psnr
from tests.data.image_files import write_parquet
from tests.demo.conftest import STORED


def values(picture: PIL.Image.Image) -> np.ndarray:
    return np.asarray(picture)


def test_denoising_shows_more_noise_at_larger_t_and_the_same_at_the_same(demo: DemoModel) -> None:
    image = demo.examples(3)[2]
    little, much, again = (demo.denoise(image, t) for t in (10, 900, 900))
    shown = values(little.clean)
    assert shown.shape == (256, 256, 3)
    assert np.array_equal(shown[::16, ::16], image.transpose(1, 2, 0)), "pixels are squares, nothing is smoothed"
    error = [np.abs(values(d.noisy).astype(float) - shown).mean() for d in (little, much)]
    assert error[1] > 2 * error[0] > 0
    assert not np.array_equal(values(little.denoised), values(much.denoised))
    assert np.array_equal(values(much.noisy), values(again.noisy))
    assert not np.array_equal(values(demo.denoise(image, 900, seed=1).noisy), values(much.noisy))
    assert little.caption.startswith("t = 10: signal γ = ") and "denoised" in much.caption


def test_psnr_of_a_known_error() -> None:
    assert psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5)) == pytest.approx(20, abs=1e-3)


def test_what_is_no_image_is_refused_in_words(demo: DemoModel, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be shown: not an image\. Choose a picture"):
        demo.read(text_file)
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"0" * 50)
    with pytest.raises(ValueError, match="cannot be shown: "):
        demo.read(tmp_path / "cut.jpg")
    PIL.Image.new("RGBA", (40, 30), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    pixels, note = demo.read(tmp_path / "clear.png")
    assert pixels.shape == (3, 16, 16) and (pixels == 255).all()
    assert note == "The picture was resized to 16x16 and cropped to its centre, transparency."


def test_patch_colours_differ_by_layer_and_time_step(demo: DemoModel) -> None:
    image = demo.examples(3)[2]
    default = demo.patch_colours(image)
    assert default.size == (256, 256)
    assert np.array_equal(
        values(default), values(demo.patch_colours(image, demo.default_layer, demo.config.feature_timestep))
    )
    other = next(layer for layer in demo.layers if layer != demo.default_layer)
    assert not np.array_equal(values(default), values(demo.patch_colours(image, other)))
    assert not np.array_equal(values(default), values(demo.patch_colours(image, timestep=900)))


def test_the_grid_has_a_row_a_layer_and_a_column_a_time_step(demo: DemoModel) -> None:
    said: list[str] = []
    grid = demo.feature_grid(demo.examples(1)[0], lambda share, activity: said.append(activity))
    layers, steps = demo.grid_layers(), demo.grid_timesteps()
    assert demo.default_layer in layers and demo.config.feature_timestep in steps and len(steps) == 5
    assert grid.width == 6 + 5 * (96 + 6) and grid.height > len(layers) * 96
    assert len(said) == len(layers) and said[-1].endswith(f"({len(layers)} of {len(layers)} layers)")


def test_the_nearest_neighbour_of_an_image_of_the_set_is_itself(demo: DemoModel) -> None:
    image, said = demo.examples(8)[5], []
    found = demo.search(lambda share, activity: said.append((share, activity))).nearest(image, 4)
    captions = [caption for _, caption in found]
    assert len(found) == 4 and captions[0] == "1.00 · 7"
    assert np.array_equal(values(found[0][0])[::8, ::8], image.transpose(1, 2, 0))
    similarities = [float(caption.split(" ")[0]) for caption in captions]
    assert similarities == sorted(similarities, reverse=True) and similarities[-1] < 1
    assert said == [] or said[0] == (0.0, "Features of digits (test): 0 of 360 images, once")
    assert demo.num_searched == 360
    demo.search(lambda share, activity: pytest.fail("the features are computed once"))


def test_the_closest_pairs_are_those_of_the_matrix_of_similarities(demo: DemoModel) -> None:
    pairs, total = demo.search().closest_pairs(0.9, count=5)
    features = demo._neighbours.features
    similarity = (features @ features.T).fill_diagonal_(-2)
    assert total == int((similarity >= 0.9).sum()) // 2 > 5 == len(pairs)
    shown = [caption.split(" · ")[:2] for _, caption in pairs]
    best = similarity.triu(1).flatten().topk(5)
    rows = [f"{k // len(features)}, {k % len(features)}" for k in best.indices.tolist()]
    assert shown == [[f"{value:.3f}", row] for value, row in zip(best.values.tolist(), rows, strict=True)]


def test_a_copy_is_the_closest_pair_and_is_shown_beside_its_original(demo: DemoModel, tmp_path: Path) -> None:
    names = [*"abcdefgh", "copy"]
    for name, image in zip(names, [*demo.examples(8), demo.examples(8)[2]], strict=True):
        PIL.Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{name}.png")
    folder = DemoModel("mine", demo.model, source=open_images(DataConfig(str(tmp_path), num_workers=0)))
    pairs, total = folder.search().closest_pairs(0.9999)
    assert total == 1 and pairs[0][1] == "1.000 · 2, 3"  # sorted by name: a, b, c, copy, d, ...
    picture = values(pairs[0][0])
    assert np.array_equal(picture[4:68:4, 4:68:4], demo.examples(8)[2].transpose(1, 2, 0))
    assert np.array_equal(picture[:, 4:68], picture[:, 72:136])
    assert folder.search().closest_pairs(1.1) == ([], 0)


def test_a_folder_of_one_image_can_be_searched(demo: DemoModel, tmp_path: Path) -> None:
    image = demo.examples(8)[2]
    PIL.Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "only.png")
    folder = DemoModel("mine", demo.model, source=open_images(DataConfig(str(tmp_path), num_workers=0)))
    assert len(folder.search().nearest(image)) == 1
    assert folder.search().closest_pairs(0.5) == ([], 0)


def test_samples_depend_on_the_seed(demo: DemoModel) -> None:
    said: list[float] = []
    first, again, other = (
        demo.samples(5, 2, seed, report=lambda share, activity: said.append(share)) for seed in (0, 0, 1)
    )
    assert np.array_equal(values(first), values(again)) and not np.array_equal(values(first), values(other))
    assert said[:3] == [0, 0.8, 1]


def test_what_it_says_of_itself(demo: DemoModel) -> None:
    assert "M weights; it sees images at 16x16, and runs on cpu" in demo.description
    beginning, note = {
        "ldae": ("l-DAE: 2 encoder and 1 decoder blocks", "fragments"),
        "ddae": ("DDAE: a UNet2DModel", "Generated from noise"),
    }[demo.config.model_type]
    assert demo.description.startswith(beginning) and note in demo.sampling_note


def test_an_encoder_alone_has_features_and_no_samples(tmp_path: Path) -> None:
    AutoModel.from_pretrained(STORED / "ldae").save_pretrained(tmp_path / "encoder")
    demo = open_demo_model(str(tmp_path / "encoder"), device="cpu")
    image = np.zeros((3, 16, 16), np.uint8)
    assert demo.name == "encoder" and demo.layers == [1, 2] and demo.examples() == []
    assert demo.patch_colours(image).size == (256, 256)
    for refused in (lambda: demo.denoise(image, 10), lambda: demo.samples(1, 1)):
        with pytest.raises(ValueError, match="encoder is only an encoder"):
            refused()
    with pytest.raises(ValueError, match="choose some with --dataset"):
        demo.search()
    rows = write_parquet(tmp_path / "rows", [12], broken=tuple(range(9)))  # the first of which cannot be read
    demo.source = open_images(DataConfig(str(rows), streaming=True))
    assert len(demo.examples(3)) == 3


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        open_demo_model(str(tmp_path / "nothing"))
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type='vit'; it must be 'ldae' or 'ddae'\. The page"):
        open_demo_model(str(tmp_path))
    with pytest.raises(ValueError, match="nowhere"):
        open_demo_model(str(STORED / "ldae"), DataConfig(str(tmp_path / "nowhere")))
