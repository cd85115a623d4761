"""Evaluation as a library: scores of ours and other people's encoders that say how they were measured."""

import json

import pytest
import torch
from transformers import (
    AutoModel,
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    IJepaConfig,
    IJepaModel,
    ViTImageProcessorPil,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from ldae import DDAEModel
from ldae.evaluation import Evaluation, PooledEncoder, few_shot_ridge, open_encoder, untrained_like
from ldae.evaluation.features import extract_features
from ldae.results import read_results
from ldae.verbs import compare, knn, linear_probe

from ..models.small_diffusers import small_unet
from ..verb_calls import call


SMALL = {
    "image_size": 24,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
NORMALISED = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Folders of a ViTMAE, a DINOv2 and an I-JEPA with random weights, as their authors' checkpoints are laid out."""
    folder = tmp_path_factory.mktemp("others")
    torch.manual_seed(0)
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    mae = ViTMAEForPreTraining(ViTMAEConfig(**SMALL, **decoder, decoder_intermediate_size=32))
    models = {"mae": mae, "dinov2": Dinov2Model(Dinov2Config(**SMALL)), "ijepa": IJepaModel(IJepaConfig(**SMALL))}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        side = {"height": 24, "width": 24}
        if name == "dinov2":
            processor = BitImageProcessorPil(size={"shortest_edge": 28}, crop_size=side, **NORMALISED)
        else:
            processor = ViTImageProcessorPil(size=side, **NORMALISED)
        processor.save_pretrained(folder / name)
    return folder


@pytest.fixture
def few(few_digits):
    return Evaluation(str(few_digits))


def test_other_peoples_encoders_see_what_their_processor_gives(others):
    images = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in ("mae", "dinov2", "ijepa"):
        encoder = open_encoder(others / name, "cpu")
        assert isinstance(encoder, PooledEncoder) and encoder.image_size == 24
        with torch.no_grad():
            found = encoder.features(images.float() / 127.5 - 1)[None][0]
            again = encoder.features(images.float() / 127.5 - 1)[None][0]
            processor = ViTImageProcessorPil(do_resize=False, **NORMALISED)
            pixels = processor(list(images), return_tensors="pt").pixel_values
            plain = AutoModel.from_pretrained(others / name, **({"mask_ratio": 0.0} if name == "mae" else {})).eval()
            outputs = plain(pixels)
        expected = outputs.pooler_output if name == "dinov2" else outputs.last_hidden_state.mean(dim=1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(found, again)  # no patch is masked or drawn
        assert encoder.pooling == ("the model's own" if name == "dinov2" else "mean over tokens or places")
        fresh = encoder.untrained(1).features(images.float() / 127.5 - 1)[None][0]
        assert not torch.allclose(fresh, found, atol=1e-3)


def test_every_score_says_how_it_was_measured(few, checkpoint):
    scores = {
        "few_shot": few.few_shot(checkpoint, shots=3, draws=4, seed=7),
        "ridge": few.ridge(checkpoint),
        "knn": few.knn(checkpoint, k=5),
        "logistic": few.logistic(checkpoint),
        "linear": few.linear(checkpoint),
        "retrieval": few.retrieval(checkpoint, layer=1, timestep=40),
    }
    for name, score in scores.items():
        entry = json.loads(json.dumps(score.entry()))
        assert (entry["split"], entry["n"], entry["checkpoint"]) == ("test", 60, str(checkpoint)), name
        assert entry["protocol"]["train_images"] == 150 and entry["protocol"]["pooling"]
        assert entry["metric"] == ("map" if name == "retrieval" else "accuracy") and 0.1 < score.value <= 1
    assert scores["few_shot"].seeds == (7,) and scores["few_shot"].stderr > 0
    assert scores["logistic"].protocol["converged"] and scores["logistic"].seeds == (0,)
    assert scores["linear"].seeds == (0, 1, 2) and scores["linear"].protocol["learning_rate"] > 0
    assert (scores["knn"].protocol["layer"], scores["retrieval"].protocol["layer"]) == (2, 1)
    assert scores["retrieval"].protocol["timestep"] == 40

    model = AutoModel.from_pretrained(checkpoint)
    train, test = (list(few._batches(16, 3, part)) for part in (0, 1))
    x, z = (extract_features(model, batches) for batches in (train, test))
    alone = few_shot_ridge(x.flat[:, 0], x.classes, z.flat[:, 0], z.classes, shots=3, draws=4, seed=7)
    assert scores["few_shot"].value == pytest.approx(sum(alone) / 4)


def test_two_live_models_of_one_class_are_not_confused(few, model):
    first, second = few.knn(model), few.knn(untrained_like(model, seed=5))
    assert first.checkpoint == second.checkpoint == "LDAEForPreTraining"
    assert few.knn(model).value == first.value
    train = (few._extract(few._choose(m), 0).values for m in (model, untrained_like(model, seed=5)))
    assert not torch.equal(*train)
    table = few.compare(model, untrained_like(model, seed=5), metrics=["knn"], raw_pixels=False)
    assert {name: next(iter(row.values())).value for name, row in table.scores.items()} == {
        "LDAEForPreTraining": first.value,
        "LDAEForPreTraining (2)": second.value,
    }


def test_a_model_that_has_trained_on_is_measured_again(few, model):
    before = few.knn(model).value
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0)
    assert few.knn(model).value != before


def test_a_fixed_probe_loses_accuracy_with_noise(few, others, checkpoint):
    for encoder in (checkpoint, others / "ijepa"):
        curve = few.robustness(encoder, [0.0, 0.2, 3.0])
        assert [score.protocol.get("noise_sigma") for score in curve] == [None, 0.0, 0.2, 3.0]
        assert [score.protocol["input"] for score in curve] == ["clean", *["noisy"] * 3]
        clean, nothing, some, much = (score.value for score in curve)
        assert nothing == clean and clean >= some > much and clean > much + 0.1
        assert few.robustness(encoder, [0.2])[1] == curve[2]  # the same noise
    assert len({score.protocol["penalty"] for score in curve}) == 1
    assert [score.protocol.get("noise_sigma") for score in few.robustness(checkpoint)][-1] == 0.8


def test_a_fixed_probe_over_time_steps_of_which_the_encoder_is_told(few, checkpoint, tmp_path):
    curve = few.robustness(checkpoint, timesteps=[10, 99, 999])
    assert [score.protocol.get("noise_timestep") for score in curve] == [None, 10, 99, 999]
    assert curve[0].value > curve[-1].value + 0.1  # of a linear_sigma schedule the last steps are almost all noise
    DDAEModel.from_diffusers(small_unet()).save_pretrained(tmp_path / "ddae")
    clean, noise = few.robustness(tmp_path / "ddae", timesteps=[998])
    assert noise.value < clean.value - 0.1


def test_a_table_of_several_encoders_and_its_files(few_digits, others, checkpoint, tmp_path, capsys):
    folders = [str(checkpoint), *(str(others / name) for name in ("mae", "dinov2", "ijepa"))]
    options = f"--dataset {few_digits} --num_workers 0 --draws 3 --k 5 --untrained --output_dir".split()
    assert call(compare, [*folders, *options, str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    assert [cell.strip("| ") for cell in rows[0]] == [
        "encoder",
        "ridge, 5 labels a class",
        "kNN, k = 5",
        "retrieval mAP",
    ]
    names = [row[0].strip("| ") for row in rows[2:]]
    assert names == [n for folder in folders for n in (folder, f"{folder}, untrained")] + ["raw pixels, 16 x 16"]
    assert "over 3 draws of the labels, the same for all" in printed
    results = read_results(tmp_path / "out")
    assert len(results) == 9 * 3
    assert (tmp_path / "out" / "comparison.md").read_text().strip() in printed
    again = Evaluation(str(few_digits)).few_shot(others / "ijepa", draws=3)
    (stored,) = [r for r in results if r["checkpoint"] == folders[3] and r["protocol"]["name"] == "ridge"]
    assert stored == json.loads(json.dumps(again.entry()))


def test_columns_of_robustness_and_its_options(few_digits, others, checkpoint, tmp_path, capsys):
    options = f"--dataset {few_digits} --num_workers 0 --metrics ridge,robustness --sigmas 0,3 --output_dir".split()
    assert call(compare, [str(checkpoint), str(others / "mae"), *options, str(tmp_path / "out")]) == 0
    table = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    head = [cell.strip("| ") for cell in table[0].split(" | ")]
    assert head == ["encoder", "ridge, all labels", "ridge, no noise", "ridge, noise 0", "ridge, noise 3"]
    rows = [[cell.strip("| ") for cell in line.split(" | ")] for line in table[2:5]]
    assert [row[0] for row in rows] == [str(checkpoint), str(others / "mae"), "raw pixels, 16 x 16"]
    for row in rows:
        assert row[2] == row[3] and float(row[4].rstrip("%")) < float(row[3].rstrip("%"))
    assert len(read_results(tmp_path / "out")) == 3 * 4


def test_neighbours_of_whitened_features_have_their_own_columns(few_digits, checkpoint, tmp_path, capsys):
    options = f"--dataset {few_digits} --num_workers 0 --whiten 8 --output_dir {tmp_path} --metrics".split()
    assert call(compare, [str(checkpoint), *options, "knn,retrieval"]) == 0
    assert "| kNN, k = 20, 8 whitened | retrieval mAP, 8 whitened |" in capsys.readouterr().out
    assert call(knn, [str(checkpoint), *options[:-1]]) == 0
    results = read_results(tmp_path)
    assert all(result["protocol"]["whiten"] == 8 for result in results)
    assert results[0]["value"] == results[-1]["value"]  # compare's and knn's of the checkpoint
    with pytest.raises(ValueError, match="whiten=8 only applies with knn or retrieval"):
        call(compare, [str(checkpoint), *options, "few_shot"])


def test_the_verbs_of_one_checkpoint_read_other_peoples_encoders_alike(few, few_digits, others, tmp_path):
    options = f"--dataset {few_digits} --num_workers 0 --output_dir {tmp_path}".split()
    assert call(linear_probe, [str(others / "mae"), *options, "--shots", "5", "--draws", "3"]) == 0
    assert call(knn, [str(others / "mae"), *options, "--k", "5"]) == 0
    assert call(linear_probe, [str(others / "dinov2"), *options, "--epochs", "1", "--seeds", "0"]) == 0
    values = [result["value"] for result in read_results(tmp_path)]
    assert values[0] == pytest.approx(few.few_shot(others / "mae", draws=3).value)
    assert values[3] == pytest.approx(few.knn(others / "mae", k=5).value)
    names = [result["checkpoint"] for result in read_results(tmp_path)]
    assert names == [
        str(others / "mae"),
        "untrained encoder",
        "raw pixels",
        str(others / "mae"),
        str(others / "dinov2"),  # Adam's probe, and a converged one beside it
        str(others / "dinov2"),
    ]
    assert [result["protocol"]["name"] for result in read_results(tmp_path)[-2:]] == ["linear", "logistic"]


def test_what_makes_no_sense_is_refused(few, few_digits, others, checkpoint):
    for measure, message in (
        (lambda: few.compare(checkpoint, metrics=["accuracy"]), r"metrics=\['accuracy'\] must be"),
        (lambda: few.compare(checkpoint, metrics=["knn"], shots=3), "shots=3 is not an option of knn"),
        (lambda: few.robustness(others / "mae", timesteps=[1]), "give sigmas for"),
        (lambda: few.robustness(checkpoint, [0.1], timesteps=[1]), "both given"),
        (lambda: few.robustness(checkpoint, [-0.1]), r"sigmas=\[-0.1\] must be"),
        (lambda: few.knn(others / "mae", layer=1), "layer and timestep are choices of l-DAE and DDAE models"),
        (lambda: few.knn(others / "nowhere"), "does not exist"),
        (lambda: call(compare, [str(checkpoint), str(checkpoint), "--dataset", "digits"]), "names one twice"),
        (lambda: call(compare, [str(checkpoint), "--dataset", "digits", "--k", "0"]), "k=0 must be"),
        (lambda: call(compare, [str(others / "mae")]), "dataset is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            measure()
