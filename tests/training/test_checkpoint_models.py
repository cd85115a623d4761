"""Checkpoints of runs as models: average or raw, the last the exported one, and folders that hold none."""

import shutil

import pytest
import torch

from ldae import DDAEForPreTraining, LDAEForPreTraining
from ldae.cli import main
from ldae.evaluation.search import write_choice
from ldae.results import read_results
from ldae.training.checkpoint import load_checkpoint
from ldae.training.pretraining import pretrain
from ldae.training.run_folder import checkpoint_models
from ldae.verbs import alignment
from tests.training.test_ddae_pretraining import make_ddae  # noqa: F401 - a fixture


def same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def stop_at_second_call(function):
    calls = []

    def called(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    return called


def test_a_ddae_run_gives_its_averaged_models_in_order(make_ddae, monkeypatch):  # noqa: F811
    folder = pretrain(make_ddae(probe_every_images=0)).path
    (first_images, first), (last_images, last) = checkpoint_models(folder)
    assert (first_images, last_images) == (64, 128) and not last.training
    exported = DDAEForPreTraining.from_pretrained(folder)
    assert same(last.state_dict(), exported.state_dict())
    assert not same(first.state_dict(), last.state_dict())

    checkpoint = load_checkpoint(folder / "checkpoints" / "images-000000000064")
    assert all(torch.equal(first.state_dict()[name], value) for name, value in checkpoint.read("ema").items())
    _, raw = next(checkpoint_models(folder, raw=True))
    assert same(raw.state_dict(), checkpoint.read("model")) and not same(raw.state_dict(), first.state_dict())

    options = ["--num_images", "20", "--timesteps", "11,400"]
    with monkeypatch.context() as patch:  # stopped at the second checkpoint
        patch.setattr(alignment, "measure_alignment", stop_at_second_call(alignment.measure_alignment))
        assert main(["alignment", str(folder), "--checkpoints", *options]) == 130
    assert {r["images_seen"] for r in read_results(folder)} == {64}
    assert main(["alignment", str(folder), "--checkpoints", *options]) == 0
    by_checkpoint = {r["checkpoint"]: r for r in read_results(folder)}
    assert list(by_checkpoint) == ["checkpoints/images-000000000064", "checkpoints/images-000000000128"]
    assert by_checkpoint["checkpoints/images-000000000064"]["images_seen"] == 64
    assert (folder / "pictures" / "alignment_course.png").is_file()
    assert main(["alignment", str(folder), *options]) == 0
    of_last, of_folder = (
        {str(r["protocol"]) + r["metric"]: r["value"] for r in read_results(folder) if r["checkpoint"] == name}
        for name in ("checkpoints/images-000000000128", ".")
    )
    assert of_folder == pytest.approx(of_last, rel=1e-5)


def test_an_ldae_run_without_an_average_gives_models_with_their_tokenizer_cut_as_chosen(make_recipe):
    folder = pretrain(make_recipe()).path
    write_choice(folder, 2, 40)
    found = list(checkpoint_models(folder))
    assert [images for images, _ in found] == [128, 256]
    last = found[-1][1]
    assert same(last.state_dict(), LDAEForPreTraining.from_pretrained(folder).state_dict())
    assert last.config.num_hidden_layers == 2 and last.config.feature_timestep == 40
    assert bool(last.ldae.tokenizer.fitted)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    again = LDAEForPreTraining.from_pretrained(folder).eval()
    timesteps, noise = again.draw_corruption(torch.arange(2), 0)
    assert torch.equal(last(pixels, timesteps, noise).loss, again(pixels, timesteps, noise).loss)
    models, late = checkpoint_models(folder), checkpoint_models(folder)
    next(models)
    shutil.rmtree(folder / "checkpoints")  # as a run in progress removes them one by one
    assert list(models) == []
    with pytest.raises(ValueError, match="none of its checkpoints left"):
        next(late)


def test_a_folder_without_checkpoints_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"holds no checkpoints/images-.*keep_checkpoints 10"):
        checkpoint_models(tmp_path / "nowhere")
    (tmp_path / "checkpoints" / "images-000000000064").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has no config.json; start its run again"):
        checkpoint_models(tmp_path)
