"""What diffusers' pipelines promise: arguments, outputs, callbacks, the progress bar, saving and loading, the Hub."""

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import PipelineCallback
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, ViTConfig

from ldae import LDAEForImageClassification, LDAEModel, LDAEPipeline, LDAEScheduler
from tests.hub.conftest import make_run_folder
from tests.hub.hub_server import TestHub
from tests.models.small_models import draw_images
from tests.pipelines.conftest import make_pipeline, seeded


# Arguments and outputs


def test_the_call_has_the_arguments_of_diffusers_pipelines():
    optional = {
        name: parameter.default
        for name, parameter in inspect.signature(LDAEPipeline.__call__).parameters.items()
        if name != "self"
    }
    assert inspect.Parameter.empty not in optional.values()
    assert {"num_inference_steps", "generator", "latents", "output_type", "return_dict", "guidance_scale"} <= set(
        optional
    )
    assert {"batch_size", "eta", "callback_on_step_end", "callback_on_step_end_tensor_inputs"} <= set(optional)
    assert (optional["output_type"], optional["return_dict"]) == ("pil", True)


def test_it_is_a_build_pipeline_diffusers_with_its_components(pipe):
    assert isinstance(pipe, DiffusionPipeline)
    assert set(pipe.components) == {"model", "scheduler"}
    assert pipe.device.type == "cpu" and pipe.dtype == torch.float32
    assert pipe.to(dtype=torch.bfloat16).model.dtype == torch.bfloat16
    again = LDAEPipeline(**pipe.components)
    assert again.model is pipe.model
    assert LDAEPipeline.from_pipe(pipe).model is pipe.model


def test_output_types_show_the_same_images(pipe):
    options = {"num_inference_steps": 3, "generator": None}
    pt, arrays, pictures, latents = (
        pipe(**options | {"generator": seeded(0, 1)}, output_type=kind).images
        for kind in ("pt", "np", "pil", "latent")
    )
    assert (pt.shape, pt.dtype, arrays.shape, arrays.dtype) == (
        (2, 3, 16, 16),
        torch.float32,
        (2, 16, 16, 3),
        np.float32,
    )
    assert np.array_equal(pt.permute(0, 2, 3, 1).numpy(), arrays)
    assert np.array_equal(np.stack([np.asarray(p) for p in pictures]), (arrays * 255).round().astype(np.uint8))
    assert (latents.shape, latents.dtype) == ((2, 16, 8), torch.float32)
    with pytest.raises(ValueError, match="output_type='jpg' is unknown; choose pil, np, pt, latent"):
        pipe(output_type="jpg")


def test_a_tuple_holds_the_same_as_the_output(pipe):
    options = {"num_inference_steps": 2, "output_type": "pt"}
    (images,) = pipe(generator=seeded(0), return_dict=False, **options)
    output = pipe(generator=seeded(0), **options)
    assert torch.equal(images, output.images) and torch.equal(images, output[0])


def test_the_number_of_images_follows_from_what_is_given(pipe, class_pipe):
    quick = {"num_inference_steps": 1, "output_type": "latent"}
    assert len(pipe(**quick).images) == 1
    assert len(pipe(4, **quick).images) == 4
    assert len(pipe(generator=seeded(0, 1), **quick).images) == 2
    assert len(pipe(latents=torch.randn(3, 16, 8), **quick).images) == 3
    assert len(class_pipe(class_labels=[0, 1, 2], **quick).images) == 3
    with pytest.raises(ValueError, match=r"numbers of images disagree \(batch_size: 2, latents: 3\)"):
        pipe(2, latents=torch.randn(3, 16, 8))
    for class_label in (np.int64(1), torch.tensor(1)):
        assert len(class_pipe(class_labels=class_label, **quick).images) == 1
    for few in ({"batch_size": 0}, {"class_labels": []}):
        with pytest.raises(ValueError, match="batch_size=0 is too small"):
            class_pipe(**few)
    with pytest.raises(ValueError, match=r"numbers of images disagree \(class_labels: 2, images: 3\)"):
        class_pipe.denoise(torch.zeros(3, 3, 16, 16), 10, class_labels=[0, 1])
    with pytest.raises(ValueError, match="images is empty"):
        pipe.denoise([], 10)
    with pytest.raises(ValueError, match=r"latents has shape \(2, 15, 8\); it must be \(2, 16, 8\)"):
        pipe(latents=torch.randn(2, 15, 8))


# Callbacks and the progress bar


def test_a_callback_sees_every_step_and_the_last_prediction(pipe):
    seen = []

    def look(pipeline, step, t, tensors):
        assert pipeline is pipe and set(tensors) == {"latents", "pred_original_sample"}
        seen.append((step, int(t), tensors))
        return tensors

    wanted = ["latents", "pred_original_sample"]
    output = pipe(
        num_inference_steps=4,
        generator=seeded(0),
        output_type="latent",
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=wanted,
    )
    assert [(step, t) for step, t, _ in seen] == [(0, 999), (1, 749), (2, 499), (3, 249)]
    assert torch.equal(seen[-1][2]["pred_original_sample"], output.images)
    assert torch.equal(output.images, pipe(num_inference_steps=4, generator=seeded(0), output_type="latent").images)
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs='noise' is unknown; choose latents"):
        pipe(callback_on_step_end=look, callback_on_step_end_tensor_inputs=["noise"])


@pytest.mark.parametrize("target", ["image", "latent"])
def test_a_callback_changes_the_latents(target):
    pipe = make_pipeline(target=target)

    def blank_at_the_end(pipeline, step, t, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == pipeline.num_timesteps - 1 else {}

    options = {"num_inference_steps": 3, "generator": None, "callback_on_step_end": blank_at_the_end}
    assert (pipe(**options, output_type="latent").images == 0).all()
    if target == "latent":
        mean = pipe.model.ldae.tokenizer.decode_images(torch.zeros(1, 16, 8), 16, 16)
        shown = pipe(**options, output_type="pt").images
        torch.testing.assert_close(shown, (mean / 2 + 0.5).clamp(0, 1))


def test_a_callback_changes_the_guidance_and_interrupts(class_pipe):
    class CutOff(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            pipeline._guidance_scale += 1.0
            pipeline._interrupt = step_index == 2
            return callback_kwargs

    class_pipe(class_labels=1, guidance_scale=2.0, num_inference_steps=7, callback_on_step_end=CutOff())
    assert (class_pipe.guidance_scale, class_pipe.num_timesteps, class_pipe.interrupt) == (5.0, 7, True)
    class_pipe(class_labels=1, num_inference_steps=2)
    assert (class_pipe.guidance_scale, class_pipe.interrupt) == (1.0, False)


def test_the_progress_bar_counts_the_steps_and_can_be_switched_off(pipe, capsys):
    pipe(num_inference_steps=5)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config()
    pipe(num_inference_steps=5)
    assert "5/5" in capsys.readouterr().err


# Denoising


@pytest.mark.parametrize("target", ["noise", "image"])
def test_denoising_is_what_training_does(target):
    pipe = make_pipeline(target=target)
    pixels, noise = draw_images(), torch.randn(3, 16, 8)
    output = pipe.denoise(pixels / 2 + 0.5, 400, noise=noise, output_type="pt")
    timesteps = torch.full((3,), 400)
    with torch.no_grad():
        expected = pipe.model(pixels, timesteps, noise).reconstruction
        zt = pipe.model.ldae.corruption(pipe.model.ldae.encode(pixels), noise, timesteps)
        noisy = pipe.model.ldae.tokenizer.decode_images(zt, 16, 16)
    torch.testing.assert_close(output.images, (expected / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.noisy_images, (noisy / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    denoised, shown = pipe.denoise(pixels / 2 + 0.5, 400, noise=noise, output_type="pt", return_dict=False)
    assert torch.equal(denoised, output.images) and torch.equal(shown, output.noisy_images)


def test_denoising_takes_pictures_of_any_size_as_the_image_processor_does(pipe, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 25, 3), np.uint8))
    pipe.save_pretrained(tmp_path)
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt").pixel_values
    noise = torch.randn(1, 16, 8)
    from_tensor = pipe.denoise((pixels + 1) / 2, 300, noise=noise, output_type="pt").images
    from_picture = pipe.denoise(picture, 300, noise=noise, output_type="pt").images
    torch.testing.assert_close(from_picture, from_tensor, rtol=0, atol=1e-5)
    assert len(pipe.denoise([picture, picture.convert("L")], 300).images) == 2
    first, again = (pipe.denoise(picture, 300, generator=seeded(0)[0], output_type="np").images for _ in range(2))
    assert np.array_equal(first, again)


def test_denoising_refuses_what_it_would_misread(pipe):
    with pytest.raises(ValueError, match=r"values from -1 to 1; .* \(images \+ 1\) / 2"):
        pipe.denoise(torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16), 10)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 8, 8\); it must be \(B, 3, 16, 16\)"):
        pipe.denoise(torch.zeros(1, 3, 8, 8), 10)
    with pytest.raises(ValueError, match="timestep=1000 does not exist; choose one of 0 to 999"):
        pipe.denoise(torch.zeros(1, 3, 16, 16), 1000)
    with pytest.raises(ValueError, match="output_type='latent' is unknown"):
        pipe.denoise(torch.zeros(1, 3, 16, 16), 10, output_type="latent")


# Saving and loading


@pytest.mark.parametrize("kind", ["pca", "vae", "conv_vae"])
def test_saved_and_loaded_it_generates_the_same_bytes(kind, tmp_path):
    pipe = make_pipeline(kind, "noise", noise_schedule="linear_gamma2")
    expected = pipe(generator=seeded(0, 1), num_inference_steps=3, output_type="pt").images
    pipe.save_pretrained(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "scheduler/scheduler_config.json", "preprocessor_config.json"} <= names
    assert "modeling_ldae.py" in names and "model_index.json" not in names
    loaded = LDAEPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(generator=seeded(0, 1), num_inference_steps=3, output_type="pt").images, expected)
    loaded.save_pretrained(tmp_path / "again")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes(), name
    assert isinstance(AutoModel.from_pretrained(tmp_path), LDAEModel)


def test_a_run_without_a_scheduler_gets_its_own(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "scheduler")
    scheduler = LDAEPipeline.from_pretrained(tmp_path).scheduler
    assert dict(scheduler.config) == dict(pipe.scheduler.config)


def test_a_run_whose_scheduler_disagrees_is_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sigma_max": 3.0}))
    with pytest.raises(ValueError, match=r"disagrees with the model's config.json: sigma_max=3.0 not 1.41"):
        LDAEPipeline.from_pretrained(tmp_path)
    loaded = LDAEPipeline.from_pretrained(tmp_path, scheduler=pipe.scheduler)
    assert loaded.scheduler is pipe.scheduler


def test_a_stock_scheduler_is_not_what_gets_saved(tmp_path):
    from diffusers import DDIMScheduler

    pipe = make_pipeline(target="noise", noise_schedule="linear_beta")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    assert isinstance(LDAEPipeline.from_pretrained(tmp_path).scheduler, LDAEScheduler)


def test_components_and_precision_can_be_given(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert LDAEPipeline.from_pretrained(tmp_path, model=pipe.model).model is pipe.model
    for dtype in (torch.bfloat16, {"model": torch.bfloat16}, {"default": torch.bfloat16}):
        assert LDAEPipeline.from_pretrained(tmp_path, dtype=dtype).dtype == torch.bfloat16


def test_what_is_no_whole_denoiser_is_refused(pipe, tmp_path):
    LDAEForImageClassification(pipe.model.config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds an encoder, not a whole denoiser: .* tensors are missing, such as head"
    ):
        LDAEPipeline.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        LDAEPipeline.from_pretrained(str(tmp_path / "nowhere"))
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(
        ValueError, match="vit' holds a model of type 'vit', but LDAEPipeline needs one of type 'ldae'"
    ):
        LDAEPipeline.from_pretrained(tmp_path / "vit")


def test_diffusers_is_imported_only_where_it_is_used():
    code = """
import sys, ldae
config = ldae.LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)
ldae.LDAEModel(config), ldae.DDAEConfig()
assert not {"diffusers", "datasets"} & set(sys.modules)
ldae.LDAEPipeline
assert "diffusers" in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


HUB_ROUND_TRIP = """
import sys, torch
from ldae import LDAEPipeline

pipe = LDAEPipeline.from_pretrained(sys.argv[1])
pipe.push_to_hub("user/pushed")
pipe.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="user/saved")
images = [
    LDAEPipeline.from_pretrained(source)(
        num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images
    for source in (sys.argv[1], "user/pushed", "user/saved")
]
assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
"""


def test_it_goes_to_the_hub_and_comes_back(tmp_path, run_python):
    folder = make_run_folder(tmp_path / "run")
    with TestHub() as hub:
        run_python(HUB_ROUND_TRIP, folder, tmp_path / "saved", hub=hub)
    assert (Path(tmp_path) / "saved" / "README.md").is_file()
