"""The same network with untrained weights, which a trained one must beat."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from ldae.models.transformer_ldae import LDAEModulation


def untrained_like(model: Any, seed: int, *, random_gates: bool = True) -> Any:
    """Build the same network with weights drawn afresh, as its own initialisation draws them.

    An untrained adaLN-Zero network is the identity, and beating that would show nothing: adaLN and gates of an l-DAE
    and of a DiT are drawn too (standard deviation 0.5), so that every block takes part. An l-DAE's tokenizer, the
    autoencoder in front of a latent DDAE and a DDAE's empty prompt are copied.

    Args:
        model (`PreTrainedModel`): An l-DAE, a DDAE or any other model of transformers.
        seed (`int`): Seed of the weights; the global random state does not change.
        random_gates (`bool`, defaults to `True`): Whether adaLN and gates are drawn; `False` starts a network that
            will be trained as the identity.

    Returns:
        A model of the same class, in evaluation mode, on the same device and in the same precision.
    """
    config, base = copy.deepcopy(model.config), model.base_model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's generator, which draws the weights
        # A denoiser's encoder may hold more blocks than its configuration says.
        options = getattr(model, "build_options", {}) if model is base else {}
        untrained: PreTrainedModel = type(model)(config, **options)
        for modulation in _modulations(untrained) if random_gates else ():
            torch.nn.init.normal_(modulation.weight, std=0.5)
            torch.nn.init.normal_(modulation.bias, std=0.5)
    prefixes = getattr(base, "fixed_prefixes", ())
    fixed = {name: value for name, value in base.state_dict().items() if name.startswith(prefixes)}
    untrained.base_model.load_state_dict(fixed, strict=False)
    parameter = next(model.parameters())
    torch.nn.Module.to(untrained, parameter.device, parameter.dtype)
    return untrained.eval()


def _modulations(model: PreTrainedModel) -> list[Any]:
    """List the linear maps that give scales, shifts and gates, in an l-DAE or in a DiT of diffusers."""
    found = [module for module in model.modules() if isinstance(module, LDAEModulation)]
    return found + [module.linear for module in model.modules() if type(module).__name__ == "AdaLayerNormZero"]
