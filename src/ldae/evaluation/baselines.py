"""What trained features are compared with: raw pixels, pooled PCA coefficients, and the same network untrained."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from ldae.data import Batch
from ldae.models.modeling_ddae import DDAEModel
from ldae.models.modeling_ldae import LDAEModel
from ldae.models.tokenizer_conv_ldae import ConvVAETokenizer
from ldae.models.tokenizer_ldae import PatchTokenizer
from ldae.models.transformer_ldae import LDAEModulation

from .encoders import PooledBackbone
from .features import Features, Prepare, centre_crop, evaluating, trunk_of


def pixel_features(batches: Iterable[Batch], *, image_size: int, prepare: Prepare | None = None) -> Features:
    """
    Raw pixels in [-1, 1], flattened: what a linear probe can do without an encoder.

    Args:
        batches (`Iterable[Batch]`): uint8 images, as [`~ldae.data.iterate_once`] yields them.
        image_size (`int`): Side of the centre crop, in pixels.
        prepare (`Callable`, *optional*): In place of that crop, as of [`~ldae.evaluation.features.extract_features`].

    Returns:
        [`Features`] with one layer and one time step, and C = channels * image_size^2.
    """
    return _collect(batches, prepare or centre_crop(image_size), lambda pixels: pixels.flatten(1))


def pca_features(model: PreTrainedModel, batches: Iterable[Batch]) -> Features:
    """
    The latents that the encoder is trained to denoise, averaged over tokens: its features before any block.

    Args:
        model (`LDAEModel` or `LDAEForPreTraining`): Whose tokenizer is used.
        batches (`Iterable[Batch]`): uint8 images.

    Returns:
        [`Features`] with one layer and one time step, and C = latent_dim.
    """
    trunk = trunk_of(model)
    device = next(trunk.parameters()).device

    def pooled(pixels: torch.Tensor) -> torch.Tensor:
        return trunk.encode(pixels.to(device)).mean(dim=1)  # (b, d)

    with evaluating(model):
        return _collect(batches, centre_crop(model.config.image_size), pooled)


def untrained_like(model: Any, seed: int, *, random_gates: bool = True) -> Any:
    """
    The same network with weights drawn afresh, as its own initialisation draws them; what stands in front of it stays.

    An untrained adaLN-Zero network is the identity, and beating that would show nothing: adaLN and gates of an l-DAE and
    of a DiT are drawn too (standard deviation 0.5), so that every block takes part. The blocks of a UNet take part from
    the start, since torch's own initial weights are drawn for all of their layers. Not drawn are an l-DAE's tokenizer, the
    autoencoder in front of a latent DDAE, and a DDAE's empty prompt.

    Args:
        model (`PreTrainedModel` or [`~ldae.evaluation.encoders.PooledBackbone`]): An l-DAE, a DDAE or any other model of
            transformers; its configuration is taken.
        seed (`int`): Seed of the weights; the global random state is left as it was.
        random_gates (`bool`, defaults to `True`): Whether adaLN and gates are drawn; where it will be trained,
            it better starts as the identity.

    Returns:
        A model of the same class, in evaluation mode, on the same device and in the same precision.
    """
    if isinstance(model, PooledBackbone):
        return model.untrained(seed)
    config = copy.deepcopy(model.config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone, where weights are drawn
        # A trunk taken out of a whole denoiser has more blocks than its configuration says.
        sizes = {"num_layers": len(model.layers)} if isinstance(model, LDAEModel) else {}
        untrained: PreTrainedModel = type(model)(config, **sizes)
        for modulation in _modulations(untrained) if random_gates else ():
            torch.nn.init.normal_(modulation.weight, std=0.5)
            torch.nn.init.normal_(modulation.bias, std=0.5)
    for fresh, fitted in zip(_tokenizers(untrained), _tokenizers(model), strict=True):
        fresh.load_state_dict(fitted.state_dict())
    for fresh_ddae, ddae in zip(_ddaes(untrained), _ddaes(model), strict=True):
        if ddae.vae is not None:
            fresh_ddae.vae.load_state_dict(ddae.vae.state_dict())
        if ddae.empty_prompt is not None:
            fresh_ddae.empty_prompt.copy_(ddae.empty_prompt)
    parameter = next(model.parameters())
    torch.nn.Module.to(untrained, parameter.device, parameter.dtype)
    return untrained.eval()


def _modulations(model: PreTrainedModel) -> list[Any]:
    """The linear maps that give scales, shifts and gates: an l-DAE's, and those of a DiT's blocks in diffusers."""
    found = [module for module in model.modules() if isinstance(module, LDAEModulation)]
    return found + [module.linear for module in model.modules() if type(module).__name__ == "AdaLayerNormZero"]


def _tokenizers(model: PreTrainedModel) -> list[torch.nn.Module]:
    return [module for module in model.modules() if isinstance(module, PatchTokenizer | ConvVAETokenizer)]


def _ddaes(model: PreTrainedModel) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, DDAEModel)]


def _collect(batches: Iterable[Batch], prepare: Prepare, compute: Callable[[torch.Tensor], torch.Tensor]) -> Features:
    values: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    for batch in batches:
        values.append(compute(prepare(batch.images, batch.positions)).float().cpu())  # (b, C)
        if batch.labels is not None:
            labels.append(batch.labels.cpu())
    if not values:
        raise ValueError("there are no images to compute features of: the data set, or the split, is empty.")
    stacked = torch.cat(values)[:, None, None]  # (n, 1, 1, C)
    return Features(stacked, torch.cat(labels) if labels else None, (None,), (None,))
