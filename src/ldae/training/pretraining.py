"""Pre-training of denoisers, l-DAE and DDAE: from a recipe to a finished run folder."""

import dataclasses
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoModelForPreTraining, PreTrainedModel

import ldae  # noqa: F401 - registers the models with transformers
from ldae.data import (
    Batch,
    ImageSource,
    augment_geometry,
    cache_latents,
    describe_counts,
    open_latents,
    prepare_latents,
)
from ldae.errors import RunError
from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.corruption_ldae import LDAECorruption
from ldae.models.tokenizer_ldae import ConvVAETokenizer
from ldae.reports.run_pictures import draw_run_pictures
from ldae.training.callbacks import AtEnd, FeatureProbe, sharing
from ldae.training.checkpoint import Checkpoint
from ldae.training.estimate import Estimate, Rehearsal, rehearse
from ldae.training.loop import train
from ldae.training.progress import progress_bar
from ldae.training.recipe import Recipe
from ldae.training.run_folder import RunFolder
from ldae.training.task import Task
from ldae.training.tokenizer_training import (
    obtain_tokenizer,
    rehearse_tokenizer,
    trains_tokenizer,
)


ENCODED_BATCH_SIZE = 64  # fixed: latents must not depend on the batch size of the training
HALF_PRECISION_ERROR = 2e-4  # of latents of unit variance, root mean square
NEGLIGIBLE = 1 / 20  # of the first noise level


class DenoisingTask(Task):
    """Denoising of images, or of their latents: an [`LDAEForPreTraining`] or a [`DDAEForPreTraining`].

    The latent tokenizer of an l-DAE is fitted or trained first where the recipe names none.
    """

    activity = "pre-training"
    product = "the model, its card and its pictures"

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.num_classes = getattr(self.config, "num_class_embeds", None)

    def build(self, checkpoint: Checkpoint | None) -> PreTrainedModel:
        """Build the whole denoiser, and fit its tokenizer or take it from the checkpoint."""
        model = AutoModelForPreTraining.from_config(self.config)
        tokenizer = getattr(model.base_model, "tokenizer", None)
        if tokenizer is not None:
            prefix = f"{model.base_model_prefix}.tokenizer."
            if checkpoint is None:
                own = obtain_tokenizer(self.recipe, self.source, self.accelerator, rehearsing=self.rehearsing)
                fitted = own.state_dict()
            else:
                fitted = {name.removeprefix(prefix): t for name, t in checkpoint.read("model", prefix).items()}
            tokenizer.load_state_dict(fitted)
            if not self.rehearsing:
                self.examples = latent_source(self.recipe, tokenizer, self.source, self.accelerator)
        return self.optimized(model)

    def loss(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Corrupt the batch, predict, and compare: the model knows its own target and weights."""
        seed, data = self.options.seed, self.recipe.data
        timesteps, noise = self.module.draw_corruption(positions, seed)
        pixels: Any = None
        conditions = {}
        if batch.latents is None:
            pixels = self.pixels(batch, positions)  # (b, C, H, W)
        else:
            stored = batch.latents.to(positions.device, non_blocking=True)  # (b, V, N, d)
            conditions["latents"] = prepare_latents(stored, positions, seed, horizontal_flip=data.horizontal_flip)
        if self.num_classes is not None:
            conditions["class_labels"] = self.module.drop_labels(self.labels(batch, positions), positions, seed)
        if data.geometric_augmentation:
            pixels, told = augment_geometry(pixels, positions, seed, probability=data.geometric_augmentation)
            conditions["augmentation_labels"] = told
        return self.network(pixels, timesteps, noise, **conditions).loss

    def export(self, folder: RunFolder, weights: dict[str, torch.Tensor]) -> None:
        """Write the model with its noise schedule."""
        folder.export(self.module, weights)

    def describe(self) -> str:
        """Describe the size of the model and what it denoises."""
        c: Any = self.config
        if hasattr(self.module.base_model, "tokenizer"):
            return (
                f"{super().describe()}, {c.num_hidden_layers} + {c.decoder_num_hidden_layers} blocks of width "
                f"{c.hidden_size}, {c.num_patches} patches, d = {c.latent_dim} of {c.patch_dim}, {c.latent_tokenizer}"
            )
        c = self.module.config  # with the features that the network has
        return (
            f"{super().describe()}, {c.denoiser_type} on {c.num_channels} x {c.image_size} x {c.image_size}; features "
            f"at {c.feature_layer} and t = {c.feature_timestep}"
        )


def latent_source(
    recipe: Recipe, tokenizer: ConvVAETokenizer, source: ImageSource, accelerator: Accelerator
) -> ImageSource:
    """Return the images that a run reads, or their latents where the recipe has a `latent_cache`.

    Latents that are missing from the cache are encoded first; each process encodes its share. The tokenizer ends on
    the CPU.

    Raises:
        ValueError: If the folder holds other latents.
        RunError: If the folder cannot be written to.
    """
    folder = recipe.training.latent_cache
    if folder is None:
        return source
    config, processes = recipe.model_config(), accelerator.num_processes
    try:
        with progress_bar(len(source.dataset), 0, accelerator.is_main_process, "latents") as bar:
            counts = cache_latents(
                tokenizer,
                source,
                folder,
                image_size=config.image_size,
                num_channels=config.num_channels,
                decode_size=recipe.data.decode_size,
                horizontal_flip=recipe.data.horizontal_flip,
                dtype=storage_dtype(config),
                batch_size=ENCODED_BATCH_SIZE,
                rank=accelerator.process_index,
                world_size=processes,
                num_workers=recipe.data.num_workers,
                device=accelerator.device,
                on_rows=lambda rows: bar.update(rows * processes),
            )
    except OSError as error:
        raise RunError(
            f"latent_cache={folder!r} cannot be written to ({error}); make room or give another folder, then run the "
            "same command to resume."
        ) from error
    tokenizer.cpu()
    accelerator.wait_for_everyone()
    if counts:
        accelerator.print(f"Images encoded by the first process: {describe_counts(counts)}")
    return open_latents(folder, source)


def storage_dtype(config: LDAEConfig) -> str:
    """Return the precision of stored latents: `"float16"` where its rounding is negligible, or `"float32"`.

    Beside the noise, rounding is not negligible where the first level has next to no noise (`linear_sigma`), or where
    the scale of the latents is unknown (`latent_scaling="none"`).
    """
    lowest = LDAECorruption(config).sigmas.min().item()
    negligible = config.latent_scaling != "none" and NEGLIGIBLE * lowest >= HALF_PRECISION_ERROR
    return "float16" if negligible else "float32"


def without_folder(recipe: Recipe) -> Recipe:
    """Return the recipe without its run's folder, which a rehearsal would compare it with."""
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, output_dir=None))


def rehearse_pretraining(recipe: Recipe) -> Rehearsal:
    """Take the first steps of [`pretrain`] and print what the whole run takes, without writing anything."""
    sharing(recipe.training, "Trained")  # which checks what it needs
    if trains_tokenizer(recipe):
        rehearse_tokenizer(without_folder(recipe))
    return rehearse(DenoisingTask(recipe))


def pretrain(recipe: Recipe) -> RunFolder:
    """Run a recipe to its end. The same call resumes, and changes nothing once the run is finished.

    Args:
        recipe ([`Recipe`]): With `training.output_dir`.

    Returns:
        [`RunFolder`], finished.

    Raises:
        ValueError, RunError: As of [`~ldae.training.loop.train`].
    """
    folder = RunFolder.from_recipe(recipe)
    probe = FeatureProbe(recipe.data, recipe.training)
    pictures = AtEnd(lambda run: draw_run_pictures(run.folder.path, run.task.source))
    callbacks = [Estimate(), probe, pictures, *sharing(recipe.training, "Trained")]
    train(DenoisingTask(recipe), recipe.training, folder, callbacks)
    return folder
