"""Latent tokenizers for a run: read, fitted in one pass, or trained by the same loop as the denoiser (Sec. 4.2)."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from ldae.data import Batch, ImageSource, iterate_once, open_images, open_probe_images, prepare_images
from ldae.data.survey import time_reading
from ldae.evaluation.reconstruction import reconstruction_quality
from ldae.models.randomness_ldae import NOISE, keyed_normal
from ldae.models.tokenizer_ldae import ConvVAETokenizer, build_conv_vae, build_tokenizer
from ldae.processes import join_processes, make_accelerator
from ldae.reports.run_pictures import reconstruction_figure
from ldae.results import Result, add_result
from ldae.tokenizers.autoencoders import ConvAutoencoderTraining, LinearAutoencoderTraining
from ldae.tokenizers.files import TOKENIZER_FILE, load_tokenizer, save_tokenizer
from ldae.tokenizers.perceptual import PerceptualLoss
from ldae.training.callbacks import tracking
from ldae.training.checkpoint import Checkpoint
from ldae.training.estimate import Estimate, Rehearsal, rehearse
from ldae.training.loop import train
from ldae.training.progress import describe_bytes, describe_count, describe_seconds, peak_memory_gib
from ldae.training.recipe import Recipe, side_training
from ldae.training.run_folder import RunFolder
from ldae.training.task import Task
from ldae.training.tokenizer_fit import fit_on_source, latent_variance, measure_latents, patch_moments


TEST_IMAGES = 10_000  # at most, to measure reconstructions on
FEW_IMAGES = 64  # on which a rehearsal fits
FITTED = ("pca", "pixel")  # the others are trained by gradient
# The fields of a model that its tokenizer depends on.
TOKENIZER_FIELDS = (
    "image_size patch_size num_channels latent_tokenizer latent_dim latent_scaling conv_vae_config".split()
)
ADVERSARIAL_BETAS = (0.5, 0.9)  # of Adam, usual against a discriminator; for all tokenizers, so that rows compare


def tokenizer_recipe(recipe: Recipe, output_dir: str | Path | None = None) -> Recipe:
    """Reduce a denoiser's recipe to what its tokenizer depends on, so that recipes can share a tokenizer.

    Args:
        recipe ([`Recipe`]): Recipe of a denoiser.
        output_dir (`str` or `Path`, *optional*): The tokenizer's folder; by default the recipe's.

    Returns:
        [`Recipe`] of the tokenizer's training: its budget and learning rate under `training`, centre crops as data.
    """
    config, t, k = recipe.model_config(), recipe.training, recipe.tokenizer
    model = {name: getattr(config, name) for name in TOKENIZER_FIELDS}
    if config.latent_tokenizer not in FITTED:  # a combination that every tokenizer allows
        model |= {"input_space": "latent", "prediction_target": "latent"}
    training = side_training(
        t.output_dir if output_dir is None else output_dir,
        k.tokenizer_images,
        k.tokenizer_batch_size,
        k.tokenizer_learning_rate,
        warmup_images=k.tokenizer_warmup_images,
        adam_betas=ADVERSARIAL_BETAS,
        mixed_precision=t.mixed_precision,
        seed=t.seed,
        report_to=t.report_to,
    )
    data = dataclasses.replace(recipe.data, random_resized_crop=False, decode_size=None)
    return Recipe(model=model, data=data, tokenizer=dataclasses.replace(k, tokenizer=None), training=training)


def obtain_tokenizer(recipe: Recipe, source: ImageSource, accelerator: Accelerator, *, rehearsing: bool) -> Any:
    """Read the fitted tokenizer that a denoiser's recipe names, or fit or train one, the same in every process.

    A rehearsal fits PCA and pixels on a few images, and leaves a tokenizer that would be trained untrained.
    """
    config, own = recipe.model_config(), tokenizer_recipe(recipe)
    folder = recipe.tokenizer.tokenizer
    if folder is None and config.latent_tokenizer in FITTED:
        return fit_on_source(source, _on_few_images(own) if rehearsing else own, accelerator).cpu()
    if rehearsing:
        tokenizer = build_tokenizer(config) if folder is None else load_tokenizer(folder, config)
        tokenizer.fitted.fill_(True)
        return tokenizer
    if folder is None:
        folder = str(RunFolder.from_recipe(recipe).path / "tokenizer")
        train_tokenizer(recipe, folder)
    tokenizer = load_tokenizer(folder, config)
    if not bool(tokenizer.fitted) and isinstance(tokenizer, ConvVAETokenizer):
        measure_latents(tokenizer, source, own, accelerator)
    if not bool(tokenizer.fitted):
        raise ValueError(f"tokenizer={folder!r} was never fitted; fit it with `ldae train_tokenizer`.")
    return tokenizer.cpu()


def trains_tokenizer(recipe: Recipe) -> bool:
    """Return whether a run of a recipe begins by training its tokenizer by gradient."""
    tokenizer = getattr(recipe.model_config(), "latent_tokenizer", None)
    return tokenizer is not None and tokenizer not in FITTED and recipe.tokenizer.tokenizer is None


def _on_few_images(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, tokenizer=dataclasses.replace(recipe.tokenizer, tokenizer_images=FEW_IMAGES))


def rehearse_tokenizer(recipe: Recipe) -> Rehearsal | None:
    """Take the first steps of [`train_tokenizer`] and print what the whole takes, without writing anything.

    Returns:
        [`~ldae.training.estimate.Rehearsal`], or `None` for a tokenizer that is fitted in one pass.
    """
    own = tokenizer_recipe(recipe)
    config, data = own.model_config(), own.data
    if config.latent_tokenizer not in FITTED:
        return rehearse(TokenizerTask(own))
    accelerator, source = make_accelerator(), open_images(data, data.split)
    fit_on_source(source, _on_few_images(own), accelerator)
    if source.num_examples is not None and not source.streaming:
        images = min(own.tokenizer.tokenizer_images, source.num_examples)
        readers = max(1, data.num_workers) * accelerator.num_processes
        seconds = time_reading(source, config.image_size) * images / readers
        accelerator.print(
            f"Time: about {describe_seconds(seconds)} to read {describe_count(images, 'image')}, without measuring "
            f"reconstructions; peak memory {describe_bytes(peak_memory_gib() * 2**30)}"
        )
    return None


def train_tokenizer(recipe: Recipe, output_dir: str | Path | None = None) -> Path:
    """Fit or train the latent tokenizer of a recipe in a folder of its own. The same call resumes.

    Args:
        recipe ([`Recipe`]): Recipe of a denoiser, or of its tokenizer.
        output_dir (`str` or `Path`, *optional*): The folder; by default the recipe's.

    Returns:
        The folder, with `tokenizer.safetensors`, `recipe.yaml`, `results.json` (PSNR, SSIM and squared error of the
        reconstructions), `pictures/` and, of a trained tokenizer, `metrics.jsonl` and `checkpoints/`.

    Raises:
        ValueError, RunError: As of [`~ldae.training.loop.train`].
    """
    own = tokenizer_recipe(recipe, output_dir)
    folder = RunFolder.from_recipe(own)
    folder.check_recipe(own)
    config = own.model_config()
    if (folder.path / TOKENIZER_FILE).is_file() and folder.recipe.is_file():
        load_tokenizer(folder.path, config)
        join_processes().print(f"{folder.path} holds a fitted tokenizer already; nothing to do.")
    elif config.latent_tokenizer not in FITTED:
        train(TokenizerTask(own), own.training, folder, [Estimate(), *tracking(own.training)])
    else:
        accelerator = make_accelerator()
        with folder.held(own, accelerator):
            tokenizer = fit_on_source(open_images(own.data, own.data.split), own, accelerator)
            if accelerator.is_main_process:
                finish_tokenizer(folder.path, own, tokenizer)
            accelerator.wait_for_everyone()
    return folder.path


class TokenizerTask(Task):
    """Reconstruction of images by an AE, a VAE or a convolutional VAE, from a recipe of [`tokenizer_recipe`]."""

    activity = "tokenizer"
    product = "the tokenizer"
    batch_option = "tokenizer_batch_size"
    remedy = "Lower tokenizer_learning_rate, lengthen tokenizer_warmup_images, or set mixed_precision=no"

    def build(self, checkpoint: Checkpoint | None) -> nn.Module:
        """Build the autoencoder with its losses."""
        config, k = self.config, self.recipe.tokenizer
        if config.latent_tokenizer == "conv_vae":
            return ConvAutoencoderTraining(
                build_conv_vae(config),
                kl_weight=k.kl_weight,
                perceptual=PerceptualLoss(k.perceptual_model) if k.perceptual_weight > 0 else None,
                perceptual_weight=k.perceptual_weight,
                adversarial_weight=k.adversarial_weight,
            )
        recipe = _on_few_images(self.recipe) if self.rehearsing else self.recipe
        self.moments = patch_moments(self.source, recipe, self.accelerator)
        return LinearAutoencoderTraining(
            config.patch_size,
            config.num_channels,
            config.latent_dim,
            mean=self.moments.mean.float().cpu(),
            variational=config.latent_tokenizer == "vae",
            kl_weight=k.kl_weight,
        )

    def loss(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Reconstruct the batch from a sample of its posterior."""
        pixels = self.pixels(batch, positions)  # (b, C, H, W)
        inputs: dict[str, Any] = {"noise": None}
        if self.config.latent_tokenizer != "ae":
            count = self.module.noise_size(pixels.shape[-1])
            inputs["noise"] = keyed_normal(self.options.seed, NOISE, positions, count)  # (b, count)
        if self.config.latent_tokenizer == "conv_vae":
            total = self.options.total_batch_size
            images_seen = int(batch.positions[0]) // total * total  # before this step
            inputs["adversarial"] = images_seen >= self.recipe.tokenizer.adversarial_start_images
        outputs = self.network(pixels, **inputs)
        self.parts = outputs.parts
        return outputs.loss

    def finish(self, folder: RunFolder, weights: dict[str, torch.Tensor]) -> None:
        """Measure the latents in every process, then write the tokenizer."""
        self.module.eval()
        if self.config.latent_tokenizer == "conv_vae":
            tokenizer: Any = build_tokenizer(self.config)
            tokenizer.vae.load_state_dict(self.module.vae.state_dict())
            measure_latents(tokenizer, self.source, self.recipe, self.accelerator)
        else:
            variance = latent_variance(self.module.encoder_weight.detach(), self.moments)
            tokenizer = self.module.to_tokenizer(self.config.latent_scaling, variance)
        if self.accelerator.is_main_process:
            finish_tokenizer(folder.path, self.recipe, tokenizer)


def finish_tokenizer(folder: Path, recipe: Recipe, tokenizer: Any) -> None:
    """Measure and draw reconstructions of test images, then write the tokenizer, which finishes the folder."""
    config = recipe.model_config()
    _, source = open_probe_images(recipe.data)
    device, counted = tokenizer.mean.device, 0

    def test_images(limit: int) -> Iterator[Batch]:
        nonlocal counted
        size: dict[str, Any] = {"image_size": config.image_size, "num_channels": config.num_channels}
        for batch in iterate_once(source, **size, batch_size=64, limit=limit):
            counted += len(batch.images)
            yield batch

    first = next(test_images(8))
    pixels = prepare_images(first.images, first.positions, 0, image_size=config.image_size).to(device)
    picture = folder / "pictures" / "reconstruction.png"
    picture.parent.mkdir(exist_ok=True)
    FigureCanvasAgg(reconstruction_figure(tokenizer, pixels)).print_png(picture)
    counted = 0
    quality = reconstruction_quality(tokenizer, test_images(TEST_IMAGES), config.image_size, device)
    protocol = {"name": "reconstruction", "latent_tokenizer": config.latent_tokenizer, "d": config.latent_dim}
    for metric, value in quality.items():
        if math.isfinite(value):  # all pixels kept give an infinite PSNR
            data, split, seed = recipe.data.dataset, source.description, recipe.training.seed
            add_result(folder, Result(metric, value, data, split, protocol, seeds=seed, n=counted))
    print(
        f"Reconstruction of {counted:,} test images: PSNR {quality['psnr']:.2f} dB, SSIM {quality['ssim']:.3f}, "
        f"squared error {quality['mse']:.5f} (pixels in [-1, 1])"
    )
    save_tokenizer(folder, tokenizer.cpu())
