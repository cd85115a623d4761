import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from ldae.cli import run_verb
from ldae.hub.model_card import TEMPLATE, is_rejected, render_model_card, write_model_card
from ldae.hub.remote_code import save_with_code
from ldae.hub.upload import is_sealed_card, seal_card
from ldae.results import Result, add_result
from tests.processes import Runner


def metadata_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def section(card: str, title: str) -> str:
    """The text under a heading, up to the next heading."""
    return re.split(r"\n#+ ", re.split(rf"\n#+ {title}\n", card)[1])[0]


def test_metadata_names_the_widget_and_every_result(run_folder: Path) -> None:
    metadata = metadata_of(str(render_model_card(run_folder, repo_id="tester/digits-nano")))
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-feature-extraction"
    assert metadata["license"] == "apache-2.0"
    assert "ldae" in metadata["tags"]
    assert "datasets" not in metadata  # the embedded digits are no repository of the Hub
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "digits-nano"
    found = {result.metric_args["protocol"]["name"]: result for result in results}
    assert found["ridge"].metric_value == 0.8125
    assert found["ridge"].metric_args["seeds"] == list(range(20))
    assert (found["knn"].metric_value, found["knn"].dataset_split) == (0.75, "test")


def test_scores_of_generated_images_are_another_task(run_folder: Path) -> None:
    protocol = {"name": "generation", "extractor": "microsoft/resnet-50 (ResNetModel)", "steps": 50}
    entry = {"metric": "FID-50K", "value": 12.345, "dataset": "digits", "split": "train", "seed": 0, "n": 50_000}
    add_result(run_folder, Result.from_entry({**entry, "protocol": protocol, "checkpoint": "."}))
    card = str(render_model_card(run_folder))
    _, results = model_index_to_eval_results(metadata_of(card)["model-index"])
    tasks = {result.metric_type: result.task_type for result in results}
    assert tasks == {"accuracy": "image-classification", "FID-50K": "unconditional-image-generation"}
    assert "| FID-50K | 12.35 | digits, train | 50,000 |" in section(card, "generation")
    assert "extractor microsoft/resnet-50 (ResNetModel), steps 50" in section(card, "generation")


def test_text_shows_the_run(run_folder: Path) -> None:
    card = str(render_model_card(run_folder))
    assert "# digits_nano\n" in card
    assert "128 wide, 2 encoder and 2 decoder blocks, 2 heads (size nano); images of 16x16" in card
    assert "1,797 images of handwritten digits" in section(card, "Training data")
    assert "12,800 images seen; 90 seconds of training; on CPU, 2 threads" in section(card, "Cost and hardware")
    assert "at most 3.0 GiB of memory" in section(card, "Cost and hardware"), "before it was resumed"
    assert "batch_size: 64" in section(card, "Recipe")
    assert "81.25 % ± 0.40" in section(card, "ridge")
    assert "20 (0 to 19)" in section(card, "ridge")
    assert "75.00 %" not in section(card, "ridge"), "kNN and linear probes never share a table"
    assert "75.00 %" in section(card, "knn")
    assert "![denoising digits](pictures/denoising_digits.png)" in section(card, "Pictures")
    assert "@article{chen2024deconstructing" in section(card, "Citation")
    assert "{{" not in card and "{%" not in card
    assert "\n\n\n" not in card


def test_baselines_are_in_the_table_and_not_in_the_model_index(run_folder: Path) -> None:
    entry = {"metric": "accuracy", "value": 0.125, "dataset": "digits", "split": "test", "seed": 0}
    protocol = {"name": "ridge", "layer": None}
    add_result(run_folder, Result.from_entry({**entry, "checkpoint": "untrained encoder", "protocol": protocol}))
    card = str(render_model_card(run_folder))
    assert "| 12.50 % | digits, test |  | 0 | untrained encoder |  |" in section(card, "ridge")
    assert "0.125" not in json.dumps(metadata_of(card))


def test_of_a_grid_search_a_card_has_the_winner(run_folder: Path) -> None:
    entry = {"metric": "accuracy", "dataset": "digits", "split": "test", "seed": 0, "checkpoint": "."}
    for layer, value in ((1, 0.375), (2, 0.625)):
        protocol = {"name": "ridge", "layer": layer, "search": "grid"}
        add_result(
            run_folder, Result.from_entry({**entry, "value": value, "protocol": protocol, "chosen": layer == 2})
        )
    card = str(render_model_card(run_folder))
    assert "62.50 %" in section(card, "ridge") and "0.625" in json.dumps(metadata_of(card))
    assert "37.50 %" not in card and "0.375" not in card


def test_many_layers_and_time_steps_share_a_row(run_folder: Path) -> None:
    entry = {"metric": "uniformity", "dataset": "digits", "split": "test", "seeds": [0], "checkpoint": "."}
    for layer in (1, 2):
        for t in range(10):
            protocol = {"name": "alignment_uniformity", "layer": layer, "timestep": t, "exponent": 2}
            result = {**entry, "value": -layer - t / 100, "protocol": protocol}
            add_result(run_folder, Result.from_entry(result))
            if t == 0:  # few, in a table that is long without them
                add_result(run_folder, Result.from_entry({**result, "metric": "alignment"}))
    for images in (100, 200, 300):
        result = {**result, "metric": "alignment", "checkpoint": f"checkpoints/images-{images:012d}"}
        add_result(run_folder, Result.from_entry(result))
    card = str(render_model_card(run_folder))
    table = section(card, "alignment_uniformity")
    row = "layers 1, 2, timesteps 10 (0 to 9), results 20, each in results.json |"
    assert table.count("uniformity |") == 1 and "| uniformity | -2.09 to -1 |" in table and row in table
    assert table.count("| alignment |") == 2
    assert "| alignment | -2 to -1 |" in table and "| 3 checkpoints of the run | layer 2, timestep 9, " in table
    assert json.dumps(metadata_of(card)).count('"uniformity"') == 0  # the model is read at t = 10, not measured here


def test_a_bare_folder_says_what_it_does_not_know(run_folder: Path) -> None:
    for name in ("recipe.yaml", "results.json", "metrics.jsonl"):
        (run_folder / name).unlink()
    card = str(render_model_card(run_folder))
    assert "not known here" in section(card, "Training data")
    assert "Not recorded" in section(card, "Cost and hardware")
    assert "Nothing has been measured yet." in section(card, "Results")
    assert "model-index" not in metadata_of(card)
    assert "\n\n\n" not in card


def test_a_local_folder_of_images_is_named_without_its_path(run_folder: Path) -> None:
    (run_folder / "recipe.yaml").write_text("data:\n  dataset: /home/someone/photos\n")
    entry = {"metric": "accuracy", "value": 0.5, "split": "test", "protocol": {"name": "knn"}, "seed": 0}
    add_result(run_folder, Result.from_entry({**entry, "dataset": "/home/someone/photos", "checkpoint": "."}))
    card = str(render_model_card(run_folder))
    assert "datasets" not in metadata_of(card)
    assert "`photos`" in section(card, "Training data")
    assert "/home" not in section(card, "knn") + json.dumps(metadata_of(card))


def test_a_hub_dataset_is_linked(run_folder: Path) -> None:
    (run_folder / "recipe.yaml").write_text("data:\n  dataset: uoft-cs/cifar10\n")
    card = str(render_model_card(run_folder))
    assert metadata_of(card)["datasets"] == ["uoft-cs/cifar10"]
    assert "https://huggingface.co/datasets/uoft-cs/cifar10" in section(card, "Training data")


def test_the_snippet_runs_as_printed(run_folder: Path, run_python: Runner) -> None:
    save_with_code(run_folder)
    snippet = re.search(r"```python\n(.*?)```", str(render_model_card(run_folder)), re.DOTALL)
    assert snippet is not None
    check = """
assert outputs.pooler_output.shape == (1, 128) and outputs.last_hidden_state.shape == (1, 16, 128)
assert len(features[0]) == 128
assert torch.allclose(torch.tensor(features), outputs.pooler_output, atol=1e-5)
"""
    run_python(snippet[1] + check, without_ldae=True, cwd=run_folder.parent)  # "digits_nano" is found from here


def test_a_classifiers_snippet_runs_as_printed(run_folder: Path, run_python: Runner) -> None:
    from ldae import LDAEForImageClassification

    LDAEForImageClassification.from_pretrained(run_folder, num_labels=10).save_pretrained(run_folder)
    save_with_code(run_folder)
    card = str(render_model_card(run_folder))
    assert metadata_of(card)["pipeline_tag"] == "image-classification"
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet is not None
    check = "\nassert logits.shape == (1, 10) and len(labels) == 5\n"
    run_python(snippet[1] + check, without_ldae=True, cwd=run_folder.parent)


@pytest.mark.parametrize("name", ["ldae", "ddae"])
def test_snippets_of_a_whole_denoiser_run_as_printed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(__file__).parents[1] / "fixtures" / name, tmp_path / "mine")
    save_with_code(tmp_path / "mine")
    encoder, denoiser = re.findall(r"```python\n(.*?)```", str(render_model_card(tmp_path / "mine")), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(encoder, found)
    assert found["features"] == [pytest.approx(found["outputs"].pooler_output[0].tolist(), abs=1e-4)]
    exec(denoiser, found)
    assert [image.size for image in (found["output"].images[0], found["output"].noisy_images[0])] == [(16, 16)] * 2
    assert len(found.get("samples", [])) == (4 if name == "ddae" else 0)


def test_a_probes_card_says_what_its_encoder_learnt_from_and_what_it_reached(run_folder: Path) -> None:
    from ldae import LDAEForImageClassification

    probe = run_folder / "linear_probe"
    LDAEForImageClassification.from_pretrained(run_folder, num_labels=10).save_pretrained(probe)
    entry = {"metric": "accuracy", "dataset": "digits", "split": "test", "checkpoint": ".", "seeds": [0, 1], "n": 360}
    for layer, value in ((1, 0.5), (2, 0.625)):
        protocol = {"name": "linear", "layer": layer, "timestep": 10}
        add_result(
            run_folder, Result.from_entry({**entry, "value": value, "protocol": protocol, "chosen": layer == 2})
        )
    recipe = run_folder / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "  push_to_hub: tester/nano\n")
    card = str(render_model_card(probe))
    metadata = metadata_of(card)
    assert metadata["base_model"] == "tester/nano" and "# digits_nano-linear_probe\n" in card
    assert [result.metric_value for result in model_index_to_eval_results(metadata["model-index"])[1]] == [0.625]
    assert "a linear probe: the encoder of `tester/nano` was frozen" in card
    assert "the linear layer was trained with them" in section(card, "Training data")
    assert "12,800 images seen" in section(card, "Cost and hardware")
    assert "62.50 %" in section(card, "linear") and "81.25" not in card
    write_model_card(probe, repo_id="tester/nano-probe")
    assert "# tester/nano-probe\n" in (probe / "README.md").read_text()


def test_our_own_card_is_brought_up_to_date(run_folder: Path) -> None:
    assert write_model_card(run_folder, license="mit") == "written"
    first = (run_folder / "README.md").read_text()
    assert is_sealed_card(first)
    assert write_model_card(run_folder) == "written"
    assert (run_folder / "README.md").read_text() == first, "nothing changed, the licence included"
    entry = {"metric": "accuracy", "value": 0.9, "dataset": "digits", "split": "test", "checkpoint": "."}
    add_result(run_folder, Result.from_entry({**entry, "protocol": {"name": "linear"}, "seed": 0}))
    assert write_model_card(run_folder) == "written"
    assert "90.00 %" in section((run_folder / "README.md").read_text(), "linear")


@pytest.mark.parametrize("change", ["written", "body", "metadata"])
def test_a_hand_written_or_edited_card_is_never_overwritten(run_folder: Path, change: str) -> None:
    path = run_folder / "README.md"
    if change == "written":
        path.write_text("# Mine\nAll of it.\n")
    else:
        write_model_card(run_folder)
        old, new = (
            ("## Limits", "## What I learnt") if change == "body" else ("library_name", "language: en\nlibrary_name")
        )
        path.write_text(path.read_text().replace(old, new, 1))
    text = path.read_text()
    assert write_model_card(run_folder) == "kept"
    assert path.read_text() == text


def test_metadata_of_a_hand_written_card_changes_on_request_only(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_folder / "README.md"
    body = "\n# Mine\n\nAll --- of it.\n"
    mine = {"metric": {"type": "accuracy", "value": 0.99}, "dataset": {"name": "mine", "type": "me/mine"}}
    index = [
        {
            "name": "x",
            "results": [
                {"task": {"type": "image-classification"}, "dataset": mine["dataset"], "metrics": [mine["metric"]]}
            ],
        }
    ]
    path.write_text(
        "---\n"
        + yaml.safe_dump({"license": "mit", "language": "en", "tags": ["mine"], "model-index": index})
        + "---\n"
        + body
    )
    before = path.read_text()
    assert run_verb("card", [str(run_folder)]) == 0
    assert path.read_text() == before
    assert "stays as it is" in capsys.readouterr().out
    for _ in range(2):  # the second time changes nothing more
        assert run_verb("card", [str(run_folder), "--update_metadata", "true"]) == 0
        text = path.read_text()
        assert text.endswith("---\n" + body)
        metadata = metadata_of(text)
        assert (metadata["license"], metadata["language"]) == ("mit", "en")
        assert metadata["tags"] == ["mine", "ldae", "self-supervised-learning", "denoising-autoencoder"]
        values = sorted(result.metric_value for result in ModelCard(text).data.eval_results)
        assert values == [0.75, 0.8125, 0.99]


def test_the_seal_survives_line_ends_and_nothing_else() -> None:
    card = seal_card("---\nlicense: mit\n---\n# A\n")
    assert is_sealed_card(card) and is_sealed_card(card.replace("\n", "\r\n"))
    assert seal_card(card) == card
    assert not is_sealed_card(card.replace("mit", "gpl"))
    assert not is_sealed_card(card + "\nOne more line.\n")


def test_the_card_verb_refuses_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb("card", [str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_model_cards_template_is_the_packaged_one() -> None:
    link = Path(__file__).parents[2] / "model_cards" / "template.md"
    assert link.is_symlink()
    assert link.resolve() == TEMPLATE.resolve()


CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.mark.parametrize("path", sorted(CARDS.glob("*/results.json")), ids=lambda path: path.parent.name)
def test_a_committed_cards_numbers_are_those_of_its_results(path: Path) -> None:
    name = path.parent.name
    card = (path.parent / "README.md").read_text()
    entries = [entry for entry in json.loads(path.read_text()) if not is_rejected(entry)]
    assert is_sealed_card(card), "as it was rendered"
    shown = [result.metric_value for result in ModelCard(card).data.eval_results]
    assert shown == [entry["value"] for entry in entries if entry["checkpoint"] == "."]
    assert card.count(" %") - card.count("{%") >= len([entry for entry in entries if entry["metric"] == "accuracy"])
    assert f"[{name}]({name})" in (CARDS / "README.md").read_text()


def test_every_committed_checkpoint_has_a_card_and_results() -> None:
    checkpoints = {path.parent.name for path in CARDS.glob("*/model.safetensors")}
    assert checkpoints == {path.parent.name for path in CARDS.glob("*/results.json")} != set()
    assert checkpoints == {path.parent.name for path in CARDS.glob("*/README.md")}
