"""Fitting the latent tokenizer on a run's own data, over all processes, before the first step."""

from typing import Any

from accelerate import Accelerator

from ldae.data import ImageLoader, ImageSource, prepare_images
from ldae.models.tokenizer_ldae import PatchPCA, patchify
from ldae.tokenizers.pca import PatchMoments, pca_from_moments
from ldae.training.recipe import Recipe


# A batch of the fit: which images are read must not depend on the batch size of the training.
FIT_BATCH_SIZE = 64


def fit_on_source(source: ImageSource, recipe: Recipe, accelerator: Accelerator) -> PatchPCA:
    """
    Fit the patch-wise PCA on the first images of the shuffled data, each process on its share.

    Args:
        source ([`~ldae.data.ImageSource`]): The training images.
        recipe ([`Recipe`]): Gives `training.tokenizer_images`, at most all there are, and the model's patches.
        accelerator: Gives the processes.

    Returns:
        [`PatchPCA`], the same on every process.
    """
    config, world = recipe.model_config(), accelerator.num_processes
    wanted = recipe.training.tokenizer_images
    if source.num_examples is not None:
        wanted = min(wanted, source.num_examples)
    loader = ImageLoader(
        source,
        recipe.data,
        image_size=config.image_size,
        num_channels=config.num_channels,
        micro_batch_size=FIT_BATCH_SIZE,
        total_batch_size=FIT_BATCH_SIZE * world,
        rank=accelerator.process_index,
        world_size=world,
        seed=recipe.training.seed,
    )
    moments = PatchMoments(config.patch_dim)
    for batch in loader:
        chosen = batch.positions < wanted  # the same images on any number of processes, unless streamed
        if not chosen.any():
            break
        images, positions = batch.images[chosen], batch.positions[chosen]
        pixels = prepare_images(images.to(accelerator.device), positions, 0, image_size=config.image_size)
        moments.update(patchify(pixels, config.patch_size))
    moments.all_reduce()
    pca = pca_from_moments(
        moments,
        patch_size=config.patch_size,
        num_channels=config.num_channels,
        latent_dim=config.latent_dim,
        latent_scaling=config.latent_scaling,
    )
    accelerator.print(describe_fit(pca, moments))
    return pca


def describe_fit(pca: PatchPCA, moments: PatchMoments) -> str:
    """One line on a fit: patches, dimensions, share of the variance that they explain."""
    share: Any = pca.explained_variance.sum().item() / moments.total_variance
    return (
        f"PCA of {moments.count:,} patches: {pca.latent_dim} of {moments.patch_dim} dimensions explain {share:.1%} of "
        "the variance"
    )
