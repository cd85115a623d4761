"""Alignment and uniformity against closed forms and loops, of features of models, and as a verb."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from ldae import DDAEConfig, DDAEForPreTraining, DDAEModel
from ldae.cli import main
from ldae.data.image_processor import save_image_processor
from ldae.evaluation.alignment import SphereScore, alignment, default_timesteps, measure_alignment, uniformity
from ldae.evaluation.encoder import as_encoder
from ldae.evaluation.features import extract_features
from ldae.evaluation.images import ImageSet, fixed_subset
from ldae.reports.layer_maps import sphere_course
from ldae.results import read_results
from tests.models.test_ddae_pretraining import UNET


def circle(n: int) -> torch.Tensor:
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_direction_has_alignment_and_uniformity_0():
    x = normal(1, 8).expand(9, 8) * torch.linspace(0.1, 10, 9)[:, None]  # lengths do not matter
    assert alignment(x, x.flip(0)) == pytest.approx(0, abs=1e-6)
    assert uniformity(x) == pytest.approx(0, abs=1e-6)


def test_alignment_is_the_squared_chord_of_the_angle_between_two_views():
    turn = 0.7
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    assert alignment(circle(11), circle(11) @ rotation) == pytest.approx(4 * math.sin(turn / 2) ** 2, abs=1e-6)
    assert alignment(circle(11), -circle(11)) == pytest.approx(4, abs=1e-6)


def test_uniformity_of_a_circle_and_of_a_sphere_is_their_integral():
    # The mean of exp(-2 ||x - y||^2) = exp(4 cos - 4): e^-4 I_0(4) on the circle, e^-4 sinh(4) / 4 on the sphere.
    n = 64
    on_circle = math.exp(-4) * torch.special.i0(torch.tensor(4.0, dtype=torch.float64)).item()
    with_itself_left_out = (n * on_circle - 1) / (n - 1)
    assert uniformity(circle(n)) == pytest.approx(math.log(with_itself_left_out), abs=1e-5)
    on_sphere = math.exp(-4) * math.sinh(4) / 4
    assert uniformity(normal(3000, 3)) == pytest.approx(math.log(on_sphere), abs=0.01)
    assert uniformity(normal(500, 4000)) == pytest.approx(-4, abs=0.02)


@pytest.mark.parametrize("chunk_size", [1, 7, 50, 51, 4096])
def test_every_pair_counts_once_whatever_the_chunk(chunk_size):
    x = F.normalize(normal(50, 6), dim=1) + 0.5
    points = F.normalize(x, dim=1).double()
    pairs = [torch.exp(-2 * (points[i] - points[j]).square().sum()) for i in range(50) for j in range(i)]
    assert uniformity(x, chunk_size) == pytest.approx(math.log(torch.stack(pairs).mean().item()), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: alignment(torch.ones(3, 2), torch.ones(2, 2)), "x and y must be"),
        (lambda: alignment(torch.ones(0, 2), torch.ones(0, 2)), "x and y must be"),
        (lambda: uniformity(torch.ones(1, 2)), "x must be"),
        (lambda: uniformity(torch.ones(4, 2), chunk_size=0), "chunk_size=0"),
    ],
)
def test_what_has_no_pairs_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.fixture(scope="module")
def some_digits(digits):
    return ImageSet(fixed_subset(digits[1], 40, 0), image_size=16, batch_size=16)


@pytest.fixture(scope="module")
def ddae():
    torch.manual_seed(0)
    return DDAEForPreTraining(DDAEConfig(denoiser_config=UNET)).eval()


def test_scores_of_a_model_are_of_its_two_noisings(ddae, some_digits):
    taps = ["mid_block.resnets.1", "up_blocks.1.resnets.0"]  # of different width
    scores = measure_alignment(ddae, some_digits, layers=taps, timesteps=[5, 700])
    assert [(s.layer, s.timestep, s.n) for s in scores] == [(tap, t, 40) for tap in taps for t in (5, 700)]
    first, second = (
        extract_features(
            ddae.ddae, some_digits.batches(), layers=[taps[1]], timesteps=[700], noisy=True, seed=seed
        ).values[:, 0, 0]
        for seed in (0, 1)
    )
    assert scores[3].alignment == pytest.approx(alignment(first, second), rel=1e-4)
    assert scores[3].uniformity == pytest.approx(uniformity(first), rel=1e-4)
    centred = measure_alignment(ddae, some_digits, layers=taps[1:], timesteps=[700], centred=True)[0]
    assert centred.alignment == pytest.approx(alignment(first - first.mean(0), second - first.mean(0)), rel=1e-3)
    with pytest.raises(ValueError, match="two different numbers"):
        measure_alignment(ddae, some_digits, layers=taps, timesteps=[5], seeds=(3, 3))


def test_noise_takes_the_views_of_an_ldae_apart_too(model, some_digits):
    scores = measure_alignment(model, some_digits, layers=[1, 4], timesteps=[0, 999])
    low, high = scores[2:]
    assert low.layer == 4 and low.timestep == 0
    assert low.alignment < high.alignment


def test_one_image_has_no_pairs_and_the_split_is_named(model, digits):
    one = ImageSet(fixed_subset(digits[1], 1, 0), image_size=16)
    with pytest.raises(
        ValueError, match=r"has 1 image, and uniformity needs pairs; name another split \(eval_split\)"
    ):
        measure_alignment(model, one, layers=[1], timesteps=[5])


def test_the_course_names_time_steps_above_and_images_below():
    scores = [SphereScore(layer, t, 0.5, -1.0, 8) for layer in ("a", "b") for t in (5, 70)]
    axes = sphere_course({64: scores, 128: scores}).axes
    assert [a.get_title() for a in axes] == ["t = 5", "t = 70", "", ""]
    assert [a.get_xlabel() for a in axes] == ["", "", "images seen", "images seen"]
    assert axes[0].get_ylabel() == "alignment" and axes[2].get_ylabel() == "uniformity"
    assert [list(line.get_xdata()) for line in axes[0].lines] == [[64, 128]] * 2


def test_time_steps_by_default_are_the_models_and_shares_of_all():
    assert default_timesteps(as_encoder(DDAEModel(DDAEConfig(denoiser_config=UNET, parametrization="edm")))) == (
        0,
        1,
        3,
        7,
        14,
    )


def test_the_verb_measures_all_blocks_of_a_whole_network(ddae, tmp_path, capsys):
    ddae.save_pretrained(tmp_path)
    save_image_processor(tmp_path, ddae.config)
    options = "--dataset digits --num_workers 0 --timesteps 11,400 --num_images 30".split()
    assert main(["alignment", str(tmp_path), *options]) == 0
    printed = capsys.readouterr().out
    assert "up_blocks.1.resnets.1" in printed and "Of 30 images without labels" in printed
    results = read_results(tmp_path)
    layers = list(dict.fromkeys(r["protocol"]["layer"] for r in results))
    assert len(layers) == 8 and len(results) == 8 * 2 * 2
    assert results[0]["metric"] == "alignment" and results[0]["seeds"] == [0, 1] and results[0]["n"] == 30
    assert results[0]["protocol"]["input"] == "noisy" and results[0]["checkpoint"] == "."
    assert (tmp_path / "pictures" / "alignment.png").is_file()

    assert main(["alignment", str(tmp_path), *options, "--layers", layers[2], "--centred"]) == 0
    assert len(read_results(tmp_path)) == 8 * 2 * 2 + 4
    assert (tmp_path / "pictures" / "alignment_centred.png").is_file()


def test_the_verb_says_what_is_wrong(ddae, tmp_path, capsys):
    ddae.save_pretrained(tmp_path / "run")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=16, patch_size=4, **sizes)).save_pretrained(tmp_path / "vit")
    digits = "--dataset digits --num_workers 0".split()
    for folder, options, message in (
        ("run", ["--seeds", "2"], "seeds=2 must be a list of 2 values"),
        ("run", ["--num_images", "1"], "num_images=1 must be"),
        ("run", ["--layers", "mid"], "layers=['mid'] must be one or more of down_blocks"),
        (
            "run",
            ["--timesteps", "1000"],
            "timesteps=[1000] must be one or more of the numbers from 0 to 999",
        ),
        ("run", ["--checkpoints"], "holds no checkpoints/images-*"),
        ("vit", [], "choices of l-DAE and DDAE models"),
    ):
        assert main(["alignment", str(tmp_path / folder), *digits, *options]) == 2, message
        assert message in " ".join(capsys.readouterr().err.split())


def test_a_block_behind_the_default_tap_is_searched_too(ddae, tmp_path):
    """Probes of a whole network read all of its blocks, not those up to the tap alone."""
    ddae.save_pretrained(tmp_path)
    save_image_processor(tmp_path, ddae.config)
    assert DDAEModel.from_pretrained(tmp_path).config.feature_layer == ddae.config.feature_layer
    assert main(["knn", str(tmp_path), "--dataset", "digits", "--layers", "up_blocks.1.resnets.1"]) == 0
    assert [r["protocol"]["layer"] for r in read_results(tmp_path)] == ["up_blocks.1.resnets.1"]
