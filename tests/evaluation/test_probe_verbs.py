import io

import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel, pipeline

from ldae import DDAEModel
from ldae.cli import run_verb
from ldae.data import DataConfig, open_images
from ldae.results import read_results
from ldae.training.recipe import load_recipe
from ldae.verbs import compare, knn, linear_probe

from ..models.small_diffusers import small_unet
from ..verb_calls import call


CACHED = "--protocol cached --num_workers 0 --horizontal_flip false".split()
FAST = "--protocol cached --probe adam --epochs 2 --num_workers 0 --horizontal_flip false".split()


def error_of(verb, arguments, capsys):
    """The one line that a user sees."""
    try:
        status = run_verb(verb.__name__.rpartition(".")[2], [str(argument) for argument in arguments])
    except SystemExit as stopped:  # argparse's own
        status = stopped.code
    assert status == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("verb", [knn, linear_probe])
def test_a_traceback_can_be_asked_for(verb, checkpoint, monkeypatch):
    """Both verbs caught the error themselves, so that it could not."""
    monkeypatch.setenv("LDAE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="this model has blocks 1 to 4"):
        run_verb(verb.__name__.rpartition(".")[2], [str(checkpoint), "--dataset", "digits", "--layers", "9"])


def test_linear_probe_prints_records_and_saves(checkpoint, capsys):
    sweep = ["--dataset", "digits", "--block_sweep", "--timesteps", "0,10", "--seeds", "0,1", *FAST]
    assert call(linear_probe, [str(checkpoint), *sweep]) == 0
    printed = capsys.readouterr().out
    assert sum(line.startswith("linear") for line in printed.splitlines()) == 8
    assert "digits (train)" in printed and "probe seeds [0, 1]" in printed

    results = read_results(checkpoint)
    assert [(r["protocol"]["layer"], r["protocol"]["timestep"]) for r in results[:3]] == [(1, 0), (1, 10), (2, 0)]
    assert len(results) == 8 and [r["chosen"] for r in results].count(True) == 1
    chosen = next(r for r in results if r["chosen"])
    assert chosen["held_out_value"] == max(r["held_out_value"] for r in results)
    assert (chosen["dataset"], chosen["split"], chosen["n"], chosen["checkpoint"]) == ("digits", "test", 360, ".")
    assert (chosen["seeds"], chosen["protocol"]["preset"]) == ([0, 1], "cached")

    image = open_images(DataConfig("digits"), "test").dataset.with_format(None)[0]["image"]
    classify = pipeline("image-classification", model=str(checkpoint / "linear_probe"))
    assert classify.model.config.num_hidden_layers == chosen["protocol"]["layer"]
    answers = classify(Image.open(io.BytesIO(image["bytes"])))
    assert {answer["label"] for answer in answers} <= set("0123456789")


def test_knn_takes_the_recipes_data_and_other_folders(checkpoint, tmp_path, capsys):
    fields = {"dataset": "digits", "num_workers": "0", "image_size": "16", "patch_size": "4", "latent_dim": "8"}
    load_recipe(None, fields | {"size": "nano"}).save(checkpoint / "recipe.yaml")
    assert call(knn, [str(checkpoint), "--output_dir", str(tmp_path / "out"), "--layers", "1,2", "--k", "5"]) == 0
    assert capsys.readouterr().out.count("kNN k=5") == 2
    results = read_results(tmp_path / "out")
    assert [r["protocol"]["layer"] for r in results] == [1, 2]
    assert {r["checkpoint"] for r in results} == {str(checkpoint)}
    assert all(0.1 < r["value"] <= 1 for r in results)
    assert not read_results(checkpoint)


def test_a_config_file_gives_options_and_the_command_line_wins(checkpoint, tmp_path, capsys):
    config = tmp_path / "probe.yaml"
    config.write_text("dataset: digits\nnum_workers: 0\nlayers: [1, 3]\nk: 7\nnoisy: true\n")
    assert call(knn, [str(checkpoint), "--config", str(config), "--k", "3"]) == 0
    assert [(r["protocol"]["k"], r["protocol"]["layer"]) for r in read_results(checkpoint)] == [(3, 1), (3, 3)]
    assert "noisy" in capsys.readouterr().out
    config.write_text("dataset: digits\nlayer: 3\n")
    assert "unknown option layer; did you mean layers?" in error_of(knn, [checkpoint, "--config", config], capsys)


def test_models_that_are_no_ldae(tmp_path, capsys):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=16, patch_size=4, **sizes)).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    assert call(linear_probe, [str(tmp_path), "--dataset", "digits", *FAST]) == 0
    assert "No classifier is saved" in capsys.readouterr().out
    assert read_results(tmp_path)[0]["protocol"]["layer"] is None
    assert "choices of l-DAE and DDAE models" in error_of(
        knn, [tmp_path, "--dataset", "digits", "--layers", "1"], capsys
    )


def test_a_noisy_probe_is_not_saved_as_a_classifier_of_clean_images(checkpoint, capsys):
    assert call(linear_probe, [str(checkpoint), "--dataset", "digits", "--noisy", *FAST]) == 0
    assert "its input would be clean" in capsys.readouterr().out
    assert not (checkpoint / "linear_probe").exists()


def test_a_ddaes_linear_probe_is_that_of_its_paper(few_digits, tmp_path):
    DDAEModel.from_diffusers(small_unet()).save_pretrained(tmp_path)
    options = ["--dataset", str(few_digits), "--num_workers", "0", "--epochs", "1", "--seeds", "0"]
    assert call(linear_probe, [str(tmp_path), *options]) == 0
    result, beside = read_results(tmp_path)  # a converged probe stands beside it
    assert (beside["protocol"]["name"], beside["protocol"]["preset"]) == ("logistic", "cached")
    assert beside["protocol"]["converged"] and beside["protocol"]["layer"] == result["protocol"]["layer"]
    details = result["protocol"]
    assert (details["batch_size"], details["learning_rate"]) == (128, pytest.approx(1e-3))
    assert details["augmentation"] == ["random_crop", "horizontal_flip"]
    assert details["pooling"] == "mean over space or tokens"


@pytest.mark.parametrize("probe", ["logistic", "ridge"])
def test_cached_features_are_probed_to_convergence(checkpoint, few_digits, capsys, probe):
    options = ["--dataset", str(few_digits), "--block_sweep", *CACHED]
    assert call(linear_probe, [str(checkpoint), *options, *(["--probe", "ridge"] if probe == "ridge" else [])]) == 0
    printed = capsys.readouterr().out
    assert sum(line.startswith(probe) for line in printed.splitlines()) == 4 and f"{probe} *" in printed
    results = read_results(checkpoint)
    assert [r["protocol"]["layer"] for r in results] == [1, 2, 3, 4]
    assert all(r["protocol"]["name"] == probe and r["seed"] == 0 and "stderr" not in r for r in results)
    chosen = [r for r in results if r["chosen"]]
    assert len(chosen) == 1 and chosen[0]["held_out_value"] == max(r["held_out_value"] for r in results)
    assert (checkpoint / "linear_probe" / "config.json").is_file()


def test_layers_and_time_steps_are_probed_together(checkpoint, few_digits, capsys):
    data = [str(checkpoint), "--dataset", str(few_digits), "--num_workers", "0", "--timesteps", "0,10", "--join"]
    for layers in ("1,2", "1,4"):
        assert call(linear_probe, [*data, "--layers", layers, *CACHED[:2], *CACHED[4:]]) == 0
        assert call(knn, [*data, "--layers", layers]) == 0
    assert "No classifier is saved" in capsys.readouterr().out
    assert call(linear_probe, [*data, "--layers", "1,4", "--baselines", "--probe", "ridge"]) == 0
    results = read_results(checkpoint)
    assert len(results) == 2 * 2 + 4  # none in place of another, and the three baselines
    joined = [entry["protocol"]["pooling"].partition("; ")[2] for entry in results]
    assert joined[:4] == [f"layers {layers} at t = 0, 10 joined" for layers in ("1, 2", "1, 2", "1, 4", "1, 4")]
    assert all(entry["protocol"]["layer"] is None for entry in results)
    assert "noisy" in error_of(knn, [*data, "--layers", "1,2", "--noisy"], capsys)
    assert "each once" in error_of(knn, [*data, "--layers", "1,1"], capsys)


def test_a_rate_at_the_edge_of_its_grid_is_told(checkpoint, few_digits, capsys):
    options = ["--dataset", str(few_digits), *FAST, "--seeds", "0", "--lr_multipliers", "1e-5,1e-4"]
    with pytest.warns(UserWarning, match="edge of its grid"):
        assert call(linear_probe, [str(checkpoint), *options]) == 0
    assert "Warning: 1 chosen learning rates lie at the edge of the grid" in capsys.readouterr().out
    (result,) = read_results(checkpoint)
    assert result["protocol"]["learning_rate_at_edge"] is True
    assert len(result["protocol"]["learning_rates_tried"]) > 2


def test_shots_and_baselines_of_an_ldae_and_a_ddae(checkpoint, few_digits, tmp_path, capsys):
    ddae = DDAEModel.from_diffusers(small_unet(), "last")
    ddae.save_pretrained(tmp_path / "ddae")
    kinds = {
        checkpoint: [".", "untrained encoder", "mean PCA coefficients", "raw pixels"],
        tmp_path / "ddae": [".", "untrained encoder", "raw pixels"],
    }
    pixels = []
    for folder, names in kinds.items():
        arguments = [str(folder), "--dataset", str(few_digits), "--num_workers", "0"]
        assert call(linear_probe, [*arguments, "--shots", "5", "--draws", "3"]) == 0
        assert "standard error over 3 draws" in capsys.readouterr().out
        results = read_results(folder)
        assert [r["checkpoint"] for r in results] == names
        assert all(r["protocol"]["labels_per_class"] == 5 and r["protocol"]["draws"] == 3 for r in results)
        assert all(r["protocol"]["layer"] is not None and r["stderr"] > 0 and r["n"] == 60 for r in results)
        pixels.append(results[-1]["value"])
        assert call(linear_probe, [*arguments, "--baselines"]) == 0
        assert [r["checkpoint"] for r in read_results(folder)[len(names) :]] == names
        assert all(r["protocol"]["holdout"] == 0.1 for r in read_results(folder)[len(names) :])
    assert pixels[0] == pixels[1] > 0.5  # the same draws


def test_what_is_wrong_is_named(checkpoint, tmp_path, capsys):
    def says(*arguments, verb=linear_probe):
        return error_of(verb, arguments, capsys)

    digits = ("--dataset", "digits")
    assert "dataset is missing" in says(checkpoint)
    assert "--output_dir" in says("someone/some-model", *digits)
    assert "blocks 1 to 4" in says(checkpoint, *digits, "--layers", "5")
    assert "layers=a,b do not exist" in says(checkpoint, *digits, "--layers", "a,b")
    assert "both given" in says(checkpoint, *digits, "--layers", "1", "--block_sweep")
    assert "0 to 999" in says(checkpoint, *digits, "--timesteps", "1000")
    assert "layers=1,2 does not go with baselines or shots" in says(
        checkpoint, *digits, "--layers", "1,2", "--shots", "5"
    )
    assert "draws=0" in says(checkpoint, *digits, "--shots", "5", "--draws", "0")
    assert "shots=1 must be an integer, 2 or more" in says(checkpoint, *digits, "--shots", "1")
    assert "seeds=[1] does not go with --shots" in says(checkpoint, *digits, "--shots", "5", "--seeds", "1")
    assert "probe=adam does not go with --shots" in says(checkpoint, *digits, "--shots", "5", "--probe", "adam")
    assert "epochs=0" in says(checkpoint, *digits, "--epochs", "0")
    assert "epochs=3 only applies with --probe adam" in says(
        checkpoint, *digits, "--protocol", "cached", "--epochs", "3"
    )
    assert "add --protocol cached" in says(checkpoint, *digits, "--probe", "logistic")
    assert "seeds=[1] only applies" in says(checkpoint, *digits, "--baselines", "--seeds", "1")
    assert "unknown option --epoch; did you mean --epochs?" in says(checkpoint, *digits, "--epoch", "3")
    assert "k=5000" in says(checkpoint, *digits, "--k", "5000", verb=knn)
    assert "model_type" in says(tmp_path, *digits)
    images = open_images(DataConfig("digits")).dataset.with_format(None)
    named = images.remove_columns("label").add_column("name", ["x"] * len(images))
    named.to_parquet(tmp_path / "data" / "train.parquet")
    message = says(checkpoint, "--dataset", tmp_path / "data")
    assert "has no label column" in message and "name (string)" in message and "--label_column" in message


def test_accuracies_of_two_label_columns_stand_side_by_side(checkpoint, tmp_path):
    for split in ("train", "test"):
        images = open_images(DataConfig("digits"), split).dataset.with_format(None)
        images = images.add_column("odd", [label % 2 for label in images["label"]])
        (tmp_path / "data").mkdir(exist_ok=True)
        images.to_parquet(tmp_path / "data" / f"{split}.parquet")
    for column in ("label", "odd"):
        assert call(knn, [str(checkpoint), "--dataset", str(tmp_path / "data"), "--label_column", column]) == 0
    results = read_results(checkpoint)
    assert [entry["protocol"]["label_column"] for entry in results] == ["label", "odd"]
    assert results[1]["value"] > results[0]["value"]  # two classes are easier than ten

    place = ["--output_dir", str(tmp_path / "compared"), "--metrics", "knn"]
    for column in ("label", "odd"):
        labelled = ["--dataset", str(tmp_path / "data"), "--label_column", column]
        assert call(compare, [str(checkpoint), *labelled, *place]) == 0
    assert len(read_results(tmp_path / "compared")) == 2 * 2  # of the checkpoint and of raw pixels
