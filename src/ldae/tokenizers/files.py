"""Fitted latent tokenizers on disk."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.tokenizer_ldae import PatchPCA


TOKENIZER_FILE = "tokenizer.safetensors"
_IN_MODEL = "ldae.tokenizer."


def save_tokenizer(folder: str | os.PathLike[str], tokenizer: PatchPCA) -> None:
    """
    Write a fitted tokenizer as `tokenizer.safetensors`.

    Args:
        folder (`str` or path): Made where it is missing.
        tokenizer ([`PatchPCA`]): Fitted.

    Raises:
        ValueError: if it was never fitted.
    """
    if not bool(tokenizer.fitted):
        raise ValueError("tokenizer.fitted=False: the tokenizer was never fitted; fit it with fit_patch_pca.")
    Path(folder).mkdir(parents=True, exist_ok=True)
    settings = {"patch_size": tokenizer.patch_size, "num_channels": tokenizer.num_channels}
    tensors = {name: value.contiguous() for name, value in tokenizer.state_dict().items()}
    save_file(tensors, Path(folder) / TOKENIZER_FILE, metadata={"format": "pt", "ldae": json.dumps(settings)})


def load_tokenizer(folder: str | os.PathLike[str], config: LDAEConfig) -> PatchPCA:
    """
    Read the tokenizer of a `train_tokenizer` folder, or of a run's model, for a model's configuration. Of one fitted
    with more components the leading `config.latent_dim` are taken.

    Args:
        folder (`str` or path): With `tokenizer.safetensors`, or `config.json` and `model.safetensors`.
        config ([`LDAEConfig`]): The model that it is for.

    Returns:
        [`PatchPCA`].

    Raises:
        ValueError: if there is none, or it was fitted for other patches or fewer components.
    """
    own, model = Path(folder) / TOKENIZER_FILE, Path(folder) / "model.safetensors"
    if own.is_file():
        with safe_open(own, framework="pt") as file:
            settings = json.loads(file.metadata()["ldae"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    elif model.is_file():
        settings = json.loads((Path(folder) / "config.json").read_text())
        with safe_open(model, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(_IN_MODEL)]  # noqa: SIM118
            tensors = {name.removeprefix(_IN_MODEL): file.get_tensor(name) for name in names}
    else:
        raise ValueError(f"tokenizer={str(folder)!r} holds neither {TOKENIZER_FILE} nor model.safetensors.")
    for name in ("patch_size", "num_channels"):
        if settings[name] != getattr(config, name):
            raise ValueError(
                f"tokenizer={str(folder)!r} was fitted with {name}={settings[name]}, the model has "
                f"{name}={getattr(config, name)}; fit one for this model with `ldae train_tokenizer`."
            )
    found = len(tensors["components"])
    if found < config.latent_dim:
        raise ValueError(
            f"tokenizer={str(folder)!r} has {found} components, fewer than latent_dim={config.latent_dim}."
        )
    for name in ("components", "explained_variance"):
        tensors[name] = tensors[name][: config.latent_dim]
    tokenizer = PatchPCA(config.patch_size, config.num_channels, config.latent_dim, config.latent_scaling)
    tokenizer.load_state_dict({name: torch.as_tensor(value) for name, value in tensors.items()})
    return tokenizer
