"""Save and load fitted latent tokenizers."""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from ldae.checkpoints import loading
from ldae.files import write_whole
from ldae.models.configuration_ldae import CONV_VAE_DEFAULTS, LDAEConfig
from ldae.models.tokenizer_ldae import (
    PATCH_TOKENIZERS,
    ConvVAETokenizer,
    LatentTokenizer,
    PatchPCA,
    PatchTokenizer,
    build_tokenizer,
)


TOKENIZER_FILE = "tokenizer.safetensors"
_IN_MODEL = re.compile(r"(?:ldae\.)?tokenizer\.(.+)")


def save_tokenizer(folder: str | os.PathLike[str], tokenizer: LatentTokenizer) -> None:
    """Write a fitted tokenizer as `tokenizer.safetensors` into a folder, which is created if it is missing."""
    if not bool(tokenizer.fitted):
        raise ValueError("tokenizer.fitted=False: the tokenizer was never fitted; fit it with fit_patch_pca.")
    Path(folder).mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"type": type(tokenizer).__name__, "patch_size": tokenizer.patch_size}
    settings["num_channels"] = tokenizer.num_channels
    if isinstance(tokenizer, ConvVAETokenizer):
        settings["conv_vae_config"] = tokenizer.conv_vae_config
    tensors = {name: value.contiguous() for name, value in tokenizer.state_dict().items()}
    metadata = {"ldae": json.dumps(settings)}  # one key: their order is random
    write_whole(Path(folder) / TOKENIZER_FILE, save(tensors, metadata))


def load_tokenizer(folder: str | os.PathLike[str], config: LDAEConfig) -> Any:
    """Read a latent tokenizer for a model's configuration.

    A PCA may have more components than the model's `latent_dim`: the leading ones are used. An `AutoencoderKL` of
    diffusers has `fitted` False, as the scale of its latents is still to be measured.

    Args:
        folder (`str` or path): A `train_tokenizer` folder (with `tokenizer.safetensors`), a run (with `config.json`
            and `model.safetensors`) or, for `conv_vae`, a folder or Hub id of an `AutoencoderKL`.
        config ([`LDAEConfig`]): Configuration of the model that uses it.

    Raises:
        ValueError: If there is none, or it does not fit the configuration.
    """
    settings, tensors = _read(folder, config)
    wanted = build_tokenizer(config)
    if settings["type"] != type(wanted).__name__:
        raise ValueError(
            f"tokenizer={str(folder)!r} is a {settings['type']}, but latent_tokenizer={config.latent_tokenizer!r} "
            f"needs a {type(wanted).__name__}; train one with `ldae train_tokenizer`."
        )
    for name in ("patch_size", "num_channels"):
        if settings.get(name) != getattr(config, name):
            raise ValueError(
                f"tokenizer={str(folder)!r} was fitted with {name}={settings.get(name)}, but the model has "
                f"{name}={getattr(config, name)}; fit one for this model with `ldae train_tokenizer`."
            )
    if settings.get("conv_vae_config") != config.conv_vae_config:
        raise ValueError(
            f"tokenizer={str(folder)!r} is not the network that conv_vae_config describes; set conv_vae_config: "
            f"{json.dumps(settings.get('conv_vae_config'))}."
        )
    if isinstance(wanted, PatchTokenizer):
        _take_leading(tensors, wanted, folder)
    wanted.load_state_dict({name: torch.as_tensor(value) for name, value in tensors.items()})
    return wanted


def _take_leading(tensors: dict[str, torch.Tensor], wanted: PatchTokenizer, folder: str | os.PathLike[str]) -> None:
    found = len(tensors["components"])
    if found < wanted.latent_dim or (found > wanted.latent_dim and type(wanted) is not PatchPCA):
        relation = "fewer than" if found < wanted.latent_dim else "not"
        raise ValueError(
            f"tokenizer={str(folder)!r} has {found} components, {relation} latent_dim={wanted.latent_dim}."
        )
    for name in ("components", "explained_variance"):
        tensors[name] = tensors[name][: wanted.latent_dim]


def _read(folder: str | os.PathLike[str], config: LDAEConfig) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the settings and tensors of a tokenizer in any kind of folder."""
    own, model, described = (Path(folder) / name for name in (TOKENIZER_FILE, "model.safetensors", "config.json"))
    if own.is_file():
        with loading(folder, "tokenizer"), safe_open(own, framework="pt") as file:
            written = (file.metadata() or {}).get("ldae")
            if written is None:
                raise ValueError(f"its {TOKENIZER_FILE} was not written by ldae")
            settings = {"type": "PatchPCA", **json.loads(written)}
            return settings, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if model.is_file() and described.is_file():
        with loading(folder, "tokenizer"):
            if LDAEConfig.get_config_dict(folder)[0].get("model_type") == "ldae":
                return _read_from_model(model, LDAEConfig.from_pretrained(folder))
    if config.latent_tokenizer == "conv_vae":
        return _read_autoencoder(folder, config)
    raise ValueError(
        f"tokenizer={str(folder)!r} holds neither {TOKENIZER_FILE} nor an l-DAE's model.safetensors; give a folder "
        "that train_tokenizer or pretrain wrote."
    )


def _read_from_model(path: Path, config: LDAEConfig) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the settings and tensors of the tokenizer in an l-DAE's weights, with or without a head around it."""
    kind: type[nn.Module] = PATCH_TOKENIZERS.get(config.latent_tokenizer, ConvVAETokenizer)
    settings = {name: getattr(config, name) for name in ("patch_size", "num_channels", "conv_vae_config")}
    with safe_open(path, framework="pt") as file:
        found = {name: _IN_MODEL.match(name) for name in file.keys()}  # noqa: SIM118
        tensors = {match[1]: file.get_tensor(name) for name, match in found.items() if match}
    return {"type": kind.__name__, **settings}, tensors


def _read_autoencoder(
    folder: str | os.PathLike[str], config: LDAEConfig
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the settings and tensors of an `AutoencoderKL`. The model chooses the size of the patches."""
    from diffusers import AutoencoderKL

    try:
        vae = AutoencoderKL.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer={str(folder)!r} holds neither {TOKENIZER_FILE} nor an l-DAE's model.safetensors, and cannot "
            f"be loaded as an AutoencoderKL: {error}"
        ) from error
    network = {name: vae.config.get(name, default) for name, default in CONV_VAE_DEFAULTS.items()}
    network = {name: list(value) if isinstance(value, tuple) else value for name, value in network.items()}
    settings = {"type": "ConvVAETokenizer", "conv_vae_config": network, "patch_size": config.patch_size}
    tensors = {f"vae.{name}": value for name, value in vae.state_dict().items()}
    if network == config.conv_vae_config:
        tensors |= build_tokenizer(config).initial_buffers()  # the scale of its latents is still to be measured
    return {**settings, "num_channels": vae.config.in_channels}, tensors
