"""Statistics of a run's images over all processes, which fit PCA and pixels and scale trained latents."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator

from ldae import stopping
from ldae.data import ImageSource, prepare_images
from ldae.models.tokenizer_ldae import ConvVAETokenizer, PatchPCA, PatchPixels, patchify
from ldae.tokenizers.pca import PatchMoments, pca_from_moments
from ldae.training.recipe import Recipe
from ldae.training.task import open_loader


FIT_BATCH_SIZE = 64  # fixed: the images must not depend on the batch size of the training


def sample_images(source: ImageSource, recipe: Recipe, accelerator: Accelerator) -> Iterator[torch.Tensor]:
    """Yield this process's share of the first `tokenizer_images` of the shuffled data, `(b, C, S, S)` in [-1, 1].

    `recipe` is one of [`~ldae.training.tokenizer_training.tokenizer_recipe`], which crops centrally. Unless the source
    is streamed, the images are the same for any number of processes.
    """
    config, world = recipe.model_config(), accelerator.num_processes
    wanted = recipe.tokenizer.tokenizer_images
    if source.num_examples is not None:
        wanted = min(wanted, source.num_examples)
    rank = accelerator.process_index
    loader = open_loader(recipe, source, FIT_BATCH_SIZE, FIT_BATCH_SIZE * world, rank=rank, world_size=world)
    for batch in loader:
        stopping.check()
        chosen = batch.positions < wanted
        if not chosen.any():
            break
        images, positions = batch.images[chosen], batch.positions[chosen]
        yield prepare_images(images.to(accelerator.device), positions, 0, image_size=config.image_size)
        if loader.full_passes:
            break  # a stream of fewer images than wanted, whose number was not known


def patch_moments(source: ImageSource, recipe: Recipe, accelerator: Accelerator) -> PatchMoments:
    """Measure mean and covariance of the patches of [`sample_images`], the same in every process."""
    config = recipe.model_config()
    moments = PatchMoments(config.patch_dim)
    for pixels in sample_images(source, recipe, accelerator):
        moments.update(patchify(pixels, config.patch_size))
    moments.all_reduce()
    return moments


def fit_on_source(source: ImageSource, recipe: Recipe, accelerator: Accelerator) -> PatchPCA:
    """Fit the patch-wise PCA, or the pixels of resized images, on [`sample_images`], the same in every process."""
    config, moments = recipe.model_config(), patch_moments(source, recipe, accelerator)
    shape = {"patch_size": config.patch_size, "num_channels": config.num_channels, "latent_dim": config.latent_dim}
    if config.latent_tokenizer == "pixel":
        tokenizer: PatchPCA = PatchPixels(**shape, latent_scaling=config.latent_scaling)
        tokenizer.mean.copy_(moments.mean)
        tokenizer.explained_variance.copy_(latent_variance(tokenizer.components, moments))
        tokenizer.fitted.fill_(True)
    else:
        tokenizer = pca_from_moments(moments, **shape, latent_scaling=config.latent_scaling)
    share = tokenizer.explained_variance.sum().item() / moments.total_variance
    accelerator.print(
        f"{config.latent_tokenizer} of {moments.count:,} patches: {tokenizer.latent_dim} of {moments.patch_dim} "
        f"dimensions explain {share:.1%} of the variance"
    )
    return tokenizer


def latent_variance(components: torch.Tensor, moments: PatchMoments) -> torch.Tensor:
    """Return the variance `(d,)` of V x, the diagonal of V cov V^T; `components` is V `(d, D)`."""
    v = components.to(moments.covariance)
    return ((v @ moments.covariance) * v).sum(dim=1)


@torch.no_grad()
def measure_latents(
    tokenizer: ConvVAETokenizer, source: ImageSource, recipe: Recipe, accelerator: Accelerator
) -> None:
    """Measure mean and variances of a convolutional VAE's latents on [`sample_images`], and mark it as fitted."""
    tokenizer.to(accelerator.device).eval()
    moments = PatchMoments(tokenizer.latent_dim)
    for pixels in sample_images(source, recipe, accelerator):
        moments.update(tokenizer.unscaled_latents(pixels))
    moments.all_reduce()
    tokenizer.mean.copy_(moments.mean)
    tokenizer.explained_variance.copy_(moments.covariance.diagonal())
    tokenizer.fitted.fill_(True)
