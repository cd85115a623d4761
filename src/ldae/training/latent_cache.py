"""A run's cache of latents, which all processes fill before the first step."""

from accelerate import Accelerator

from ldae.data import ImageSource, cache_latents, describe_counts, open_latents
from ldae.errors import RunError
from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.corruption_ldae import LDAECorruption
from ldae.models.tokenizer_conv_ldae import ConvVAETokenizer
from ldae.training.progress import progress_bar
from ldae.training.recipe import Recipe


ENCODED_BATCH_SIZE = 64  # fixed: latents must not depend on the batch size of the training
HALF_PRECISION_ERROR = 2e-4  # of latents of unit variance, root mean square
NEGLIGIBLE = 1 / 20  # of the first noise level


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
