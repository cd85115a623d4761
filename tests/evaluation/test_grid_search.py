"""The grid of blocks and time steps: what chooses, what is written, and who reads it."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, ViTConfig, ViTModel, pipeline

from ldae import (
    DDAEConfig,
    DDAEForImageClassification,
    DDAEModel,
    LDAEConfig,
    LDAEForPreTraining,
    save_image_processor,
)
from ldae.data import DataConfig, iterate_once, open_images
from ldae.evaluation.classifier import build_classifier, save_classifier
from ldae.evaluation.features import extract_features
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.probing import run_probe
from ldae.evaluation.protocol import Protocol
from ldae.evaluation.search import GridScore, best_score, search_by_criterion, write_choice
from ldae.reports.layer_maps import heat_map
from ldae.results import read_results
from ldae.verbs import grid_search, linear_probe

from ..models.small_diffusers import small_unet
from ..verb_calls import call


@pytest.fixture
def ddae(tmp_path):
    """Widths 8 and 16, all taps, in a folder."""
    DDAEModel.from_diffusers(small_unet(), "last").save_pretrained(tmp_path / "ddae")
    model = DDAEModel.from_pretrained(tmp_path / "ddae")
    save_image_processor(tmp_path / "ddae", model.config)
    return model


FAST = "--dataset digits --num_workers 0 --probe adam --epochs 2 --learning_rates 1e-2".split()


def test_held_out_images_choose_and_the_test_set_does_not():
    scores = [
        GridScore(1, 0, False, held_out=0.5, test=0.9, stderr=None),
        GridScore(2, 0, False, held_out=0.6, test=0.4, stderr=None),
        GridScore(3, 0, True, held_out=0.7, test=0.1, stderr=None),
    ]
    assert best_score(scores) is scores[2]
    assert best_score(scores, clean_only=True) is scores[1]


def test_the_winner_becomes_the_default_of_automodel(checkpoint, digits, capsys):
    before = AutoModel.from_pretrained(checkpoint)
    assert call(grid_search, [str(checkpoint), *FAST, "--timesteps", "10,400", "--noisy", "both"]) == 0
    results = read_results(checkpoint)
    assert len(results) == 4 * 2 * 2 and [r["chosen"] for r in results].count(True) == 1
    assert all(r["protocol"]["augmentation"] == [] for r in results)  # one sweep, unless mirror images are asked for
    clean = [r for r in results if r["protocol"]["input"] == "clean"]
    best = max(clean, key=lambda r: r["held_out_value"])["protocol"]
    assert f"features are read after block {best['layer']} at t = {best['timestep']}" in capsys.readouterr().out
    assert (checkpoint / "pictures" / "grid_search.png").stat().st_size > 5000

    after = AutoModel.from_pretrained(checkpoint)
    assert (len(after.layers), after.config.feature_timestep) == (best["layer"], best["timestep"])
    batches = list(iterate_once(digits[1], image_size=16, batch_size=64, limit=64))
    whole = extract_features(
        LDAEForPreTraining.from_pretrained(checkpoint), batches, layers=[best["layer"]], timesteps=[best["timestep"]]
    )
    torch.testing.assert_close(extract_features(after, batches).values, whole.values)
    assert before.config.num_hidden_layers == 2


def test_the_cut_keeps_every_block_of_the_denoiser(checkpoint):
    weights = {
        name: value.clone() for name, value in LDAEForPreTraining.from_pretrained(checkpoint).state_dict().items()
    }
    write_choice(checkpoint, 3, 40)
    again = LDAEForPreTraining.from_pretrained(checkpoint)
    assert (again.config.num_hidden_layers, again.config.decoder_num_hidden_layers) == (3, 1)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in weights.items())
    write_choice(checkpoint, 1, 0)
    assert AutoModel.from_pretrained(checkpoint).config.stage_names == ["stem", "stage1"]


def test_taps_of_different_widths_are_searched_together(tmp_path, digits):
    model = DDAEModel.from_diffusers(small_unet(), "last")
    widths = {name: shape[0] for name, shape in model.feature_layers.items()}
    assert len(set(widths.values())) == 2
    batches = list(iterate_once(digits[1], image_size=16, batch_size=64, limit=64))
    together = extract_features(model, batches, layers=list(widths), timesteps=[1, 11], noisy=True)
    assert together.values.shape == (64, len(widths), 2, max(widths.values()))
    for index, (name, width) in enumerate(widths.items()):
        alone = extract_features(model, batches, layers=[name], timesteps=[11], noisy=True).values[:, 0, 0]
        assert alone.shape == (64, width)
        torch.testing.assert_close(together.values[:, index, 1, :width], alone)
        assert not together.values[:, index, :, width:].any()

    model.save_pretrained(tmp_path)
    save_image_processor(tmp_path, model.config)
    assert call(grid_search, [str(tmp_path), *FAST, "--timesteps", "1,11"]) == 0
    best = max(read_results(tmp_path), key=lambda r: r["held_out_value"])["protocol"]
    chosen = AutoModel.from_pretrained(tmp_path)
    assert (chosen.config.feature_layer, chosen.config.feature_timestep) == (best["layer"], best["timestep"])
    expected = extract_features(model, batches, layers=[best["layer"]], timesteps=[best["timestep"]])
    torch.testing.assert_close(extract_features(chosen, batches).values, expected.values)


def test_the_best_tap_is_saved_as_a_classifier_with_the_probes_logits(ddae, digits):
    """The narrower taps of a grid had their features filled up with zeros, of which the classifier knows nothing."""
    narrow = [name for name, shape in ddae.feature_layers.items() if shape[0] == 8][-1]
    wide = [name for name, shape in ddae.feature_layers.items() if shape[0] == 16][-1]
    settings = ProbeSettings(epochs=3, base_lr=0.1, lr_multipliers=(1.0,), seeds=(0,))
    protocol = Protocol("cached", (wide, narrow), (11,), horizontal_flip=False, settings=settings)
    result = run_probe(ddae, *digits, protocol)
    batches = list(iterate_once(digits[1], image_size=16, batch_size=64, limit=64))
    together = extract_features(ddae, batches, layers=[wide, narrow], timesteps=[11]).flat
    for index, name in enumerate((wide, narrow)):
        folder = Path(ddae.name_or_path) / name
        weight, bias = result.probes.folded(index)
        names = [f"digit {k}" for k in range(10)]
        built = build_classifier(ddae.name_or_path, weight, bias, layer=name, timestep=11, class_names=names)
        save_classifier(built, folder)
        classifier = AutoModelForImageClassification.from_pretrained(folder)
        assert isinstance(classifier, DDAEForImageClassification)
        assert classifier.classifier.in_features == ddae.feature_layers[name][0]
        assert (classifier.config.feature_layer, classifier.config.feature_timestep) == (name, 11)
        with torch.no_grad():
            logits = classifier(batches[0].images.float() / 127.5 - 1).logits
        expected = together[:, index] @ weight.T + bias
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(logits.argmax(dim=1), result.probes.probes.predict(together)[0, index, 0])


def test_both_verbs_save_a_ddaes_probe_for_pipelines(ddae, few_digits, capsys):
    folder = Path(ddae.name_or_path)
    options = f"--dataset {few_digits} --num_workers 0 --protocol cached".split()
    assert call(grid_search, [str(folder), *options, "--timesteps", "1,11"]) == 0
    assert call(linear_probe, [str(folder), *options, "--probe", "adam"]) == 0
    assert capsys.readouterr().out.count("Classifier (") == 2
    image = Image.new("RGB", (40, 30), "white")
    for name in ("grid_search", "linear_probe"):
        classify = pipeline("image-classification", model=str(folder / name))
        assert classify.model.config.feature_layer == AutoModel.from_pretrained(folder).config.feature_layer
        assert {answer["label"] for answer in classify(image)} <= set("0123456789")


def test_ridge_probes_search_clean_and_noisy_inputs_in_seconds(ddae, few_digits, capsys):
    folder = Path(ddae.name_or_path)
    options = f"--dataset {few_digits} --num_workers 0 --probe ridge --timesteps 1,21 --noisy both".split()
    options += ["--horizontal_flip", "true"]
    assert call(grid_search, [str(folder), *options, "--feature_memory", "0"]) == 0
    assert "Grid search (ridge probes, cached protocol)" in capsys.readouterr().out
    results = read_results(folder)
    taps = [name for name in ddae.feature_layers if ".resnets." in name]
    assert len(results) == len(taps) * 2 * 2
    assert all(r["protocol"]["augmentation"] == ["horizontal_flip"] for r in results)
    assert all(r["protocol"]["name"] == "ridge" and r["protocol"]["penalty"] > 0 and r["seed"] == 0 for r in results)
    assert [r["chosen"] for r in results].count(True) == 1
    best = max((r for r in results if r["protocol"]["input"] == "clean"), key=lambda r: r["held_out_value"])
    assert best["value"] > 0.3
    classifier = AutoModelForImageClassification.from_pretrained(folder / "grid_search")
    assert classifier.config.feature_layer == best["protocol"]["layer"]
    batches = list(iterate_once(open_images(DataConfig(str(few_digits)), "test"), image_size=16, batch_size=60))
    with torch.no_grad():
        logits = classifier(batches[0].images.float() / 127.5 - 1).logits
    assert float((logits.argmax(dim=1) == batches[0].labels).double().mean()) == pytest.approx(best["value"])


def test_logistic_probes_search_too(checkpoint, few_digits):
    options = ["--dataset", str(few_digits), "--num_workers", "0", "--probe", "logistic", "--timesteps", "10,400"]
    assert call(grid_search, [str(checkpoint), *options]) == 0
    results = read_results(checkpoint)
    assert len(results) == 4 * 2 and all(r["protocol"]["name"] == "logistic" for r in results)
    assert all(r["protocol"]["converged"] for r in results)


def test_the_ddae_papers_setting_has_a_name(ddae, few_digits):
    folder = Path(ddae.name_or_path)
    options = (
        f"--dataset {few_digits} --num_workers 0 --protocol paper --batch_norm false --timesteps 11 --layers".split()
    )
    assert call(grid_search, [str(folder), *options, "mid_block.resnets.1,up_blocks.0.resnets.0"]) == 0
    expected = {
        "preset": "paper",
        "epochs": 15,
        "batch_size": 128,
        "optimizer": "Adam",
        "learning_rate": 1e-3,
        "learning_rates_tried": [1e-3],
        "schedule": "cosine",
        "batch_norm": "none",
        "augmentation": ["random_crop", "horizontal_flip"],
    }
    for result in read_results(folder):
        assert {name: result["protocol"][name] for name in expected} == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LDAEConfig(), (0, 10, 20, 40, 80, 160, 320, 640, 999)),
        (LDAEConfig(num_train_timesteps=100, feature_timestep=1), (0, 1, 2, 4, 8, 16, 32, 64, 99)),
        (LDAEConfig(feature_timestep=500), (0, 10, 20, 40, 80, 160, 320, 500, 640, 999)),
        (DDAEConfig(feature_timestep=10), (0, 10, 20, 40, 80, 160, 250)),
        (DDAEConfig(parametrization="edm", feature_timestep=3), (1, 2, 3, 4, 5, 6, 7, 8)),
    ],
)
def test_a_search_spans_the_schedule(config, expected):
    """It stopped at 8 % of it, where the gates are nearly closed."""
    assert config.search_timesteps == expected


def test_the_papers_point_outlives_a_choice():
    config = LDAEConfig.from_size("nano", num_hidden_layers=1, decoder_num_hidden_layers=3, feature_timestep=640)
    assert config.paper_point == (2, 10)
    assert LDAEConfig.from_size("nano", num_train_timesteps=50, feature_timestep=0).paper_point == (2, 0)


def test_without_labels_a_criterion_chooses(checkpoint, few_digits, tmp_path, capsys, monkeypatch):
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    for name in ("train", "test"):
        rows = open_images(DataConfig(str(few_digits)), name).dataset.with_format(None)
        rows.remove_columns("label").to_parquet(unlabelled / f"{name}.parquet")
    options = ["--dataset", str(unlabelled), "--num_workers", "0", "--timesteps", "10,400"]
    with pytest.raises(ValueError, match=r"no label column.*--criterion rankme"):
        call(grid_search, [str(checkpoint), *options])
    seen = {}

    def score(model, batches, criterion, **reading):
        seen.update(reading, largest=max(len(batch.images) for batch in batches))
        return search_by_criterion(model, batches, criterion, **reading)

    monkeypatch.setattr(grid_search, "search_by_criterion", score)
    options += "--mixed_precision bf16 --forward_batch_size 40".split()
    assert call(grid_search, [str(checkpoint), *options, "--criterion", "rankme"]) == 0
    assert (seen["dtype"], seen["largest"]) == (torch.bfloat16, 40)
    assert "No label was looked at." in capsys.readouterr().out
    results = read_results(checkpoint)
    assert len(results) == 4 * 2 and {r["metric"] for r in results} == {"rankme"}
    (best,) = [r for r in results if r["chosen"]]
    assert best["value"] == max(r["value"] for r in results)
    config = AutoModel.from_pretrained(checkpoint).config
    assert (config.num_hidden_layers, config.feature_timestep) == (
        best["protocol"]["layer"],
        best["protocol"]["timestep"],
    )


def test_a_checkpoint_elsewhere_and_a_wish_leave_the_config_alone(checkpoint, tmp_path, capsys):
    before = (checkpoint / "config.json").read_bytes()
    assert call(grid_search, [str(checkpoint), *FAST, "--timesteps", "10", "--output_dir", str(tmp_path / "out")]) == 0
    assert "config.json stays as it is" in capsys.readouterr().out
    assert call(grid_search, [str(checkpoint), *FAST, "--timesteps", "10", "--write_config", "false"]) == 0
    assert call(grid_search, [str(checkpoint), *FAST, "--timesteps", "10", "--noisy", "true"]) == 0
    assert "a default input is clean, and these were noisy" in capsys.readouterr().out
    assert (checkpoint / "config.json").read_bytes() == before


def test_what_makes_no_sense_is_refused(checkpoint, tmp_path):
    for extra, message in (
        (["--noisy", "perhaps"], "noisy='perhaps' must be one of false, true, both"),
        (["--criterion", "rankme"], "probe=adam only applies to probes; leave it out with --criterion rankme"),
        (["--feature_memory", "-1"], "feature_memory=-1"),
        (["--layers", "9"], "this model has blocks 1 to 4"),
        (["--timesteps", "5000"], "numbers from 0 to 999"),
        (["--layers", "1", "--timesteps", "10"], "more than one block, time step or learning rate"),
    ):
        with pytest.raises(ValueError, match=message):
            call(grid_search, [str(checkpoint), *FAST, *extra])
    for extra in (["--noisy", "true"], ["--protocol", "paper"], ["--epochs", "3"], ["--batch_norm", "false"]):
        with pytest.raises(ValueError, match=f"{extra[0][2:]}={extra[1]} only applies to probes"):
            call(grid_search, [str(checkpoint), "--dataset", "digits", "--criterion", "rankme", *extra])
    with pytest.raises(ValueError, match="epochs=2 only applies with --probe adam"):
        call(grid_search, [str(checkpoint), "--dataset", "digits", "--probe", "ridge", "--epochs", "2"])
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=16, patch_size=4, **small)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="choices of l-DAE and DDAE models; this is a vit"):
        call(grid_search, [str(tmp_path / "vit"), *FAST])


def test_the_heat_map_frames_the_winner():
    scores = [GridScore(layer, t, False, layer / 10, layer / 10, None) for layer in (1, 2, 3) for t in (0, 10)]
    axes = heat_map(scores, best_score(scores)).axes[0]
    (frame,) = axes.patches
    assert (frame.get_x(), frame.get_y()) == (-0.5, 1.5)
    winner, paper = heat_map(scores, best_score(scores), paper=(2, 10)).axes[0].patches
    assert winner.get_linestyle() != paper.get_linestyle() and (paper.get_x(), paper.get_y()) == (0.5, 0.5)
    assert [text.get_text() for text in axes.texts] == ["10.0", "10.0", "20.0", "20.0", "30.0", "30.0"]
    assert json.dumps([label.get_text() for label in axes.get_yticklabels()]) == '["1", "2", "3"]'
