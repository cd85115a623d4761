"""A run's cache of latents: filled before the first step, by all processes, and read in place of the images."""

import torch
from accelerate import Accelerator

from ldae.data import ImageSource, cache_latents, describe_counts, open_latents
from ldae.errors import RunError
from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.corruption_ldae import noise_schedule_tables
from ldae.models.tokenizer_conv_ldae import ConvVAETokenizer
from ldae.training.progress import progress_bar
from ldae.training.recipe import Recipe


ENCODED_BATCH_SIZE = 64  # which images are encoded together must not depend on the batch size of the training
HALF_PRECISION_ERROR = 2e-4  # of latents of unit variance, root mean square
NEGLIGIBLE = 1 / 20  # of the first noise level


def latent_source(
    recipe: Recipe, tokenizer: ConvVAETokenizer, source: ImageSource, accelerator: Accelerator
) -> ImageSource:
    """What a run reads: its images, or their latents where the recipe has a `latent_cache`, encoded now where they are not
    there yet.

    Args:
        recipe ([`Recipe`]): Of the denoiser.
        tokenizer ([`ConvVAETokenizer`]): Fitted. It comes back on the CPU.
        source ([`~ldae.data.ImageSource`]): The training images.
        accelerator: Gives the processes; each encodes its share.

    Returns:
        [`~ldae.data.ImageSource`].

    Raises:
        ValueError: where the folder holds the latents of something else.
        RunError: where it cannot be written to.
    """
    folder = recipe.training.latent_cache
    if folder is None:
        return source
    config, processes = recipe.model_config(), accelerator.num_processes
    bar = progress_bar(len(source.dataset), 0, accelerator.is_main_process, "latents")
    try:
        with bar:
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
            f"latent_cache={folder!r} cannot be written to ({error}); make room, or give a folder that can. What is there "
            "stays, and the same command goes on."
        ) from error
    tokenizer.cpu()
    accelerator.wait_for_everyone()
    if counts:
        accelerator.print(f"Images encoded by the first process: {describe_counts(counts)}")
    return open_latents(folder, source)


def storage_dtype(config: LDAEConfig) -> str:
    """`"float16"` where its rounding is negligible beside the noise that every time step adds, else `"float32"`: where the
    first level has next to no noise (`linear_sigma`), or the latents' scale is not known (`latent_scaling="none"`).
    """
    _, sigmas = noise_schedule_tables(
        config.noise_schedule,
        config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        sigma_max=config.sigma_max,
        sigma=config.sigma,
    )
    negligible = config.latent_scaling != "none" and NEGLIGIBLE * torch.min(sigmas).item() >= HALF_PRECISION_ERROR
    return "float16" if negligible else "float32"
