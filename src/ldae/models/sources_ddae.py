"""Diffusion models as sources of an encoder: folders, Hub ids or objects, read into the parts that DDAE uses."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import cached_file, logging

from .configuration_ddae import DENOISERS, ldae_fields
from .diffusers_ddae import diffusers_class, field_names
from .modeling_ldae import LDAEModel
from .pretraining_ldae import LDAEForPreTraining


logger = logging.get_logger(__name__)


@dataclass
class DiffusionParts:
    """The parts of a diffusion model that DDAE uses."""

    denoiser: Any
    vae: Any = None  # the AutoencoderKL in front of it
    scheduler: dict[str, Any] | None = None  # its configuration
    empty_prompt: torch.Tensor | None = None  # (L, D), the empty text as the text encoder encodes it

    def config_fields(self) -> dict[str, Any]:
        """Return the parts as fields of [`DDAEConfig`]."""
        known = field_names(diffusers_class("DDPMScheduler")) if self.scheduler is not None else []
        schedule = None if self.scheduler is None else {k: v for k, v in self.scheduler.items() if k in known}
        return {
            "denoiser_type": type(self.denoiser).__name__,
            "denoiser_config": _config_of(self.denoiser),
            "vae_config": None if self.vae is None else _config_of(self.vae),
            "scheduler_config": schedule,
            "empty_prompt_length": None if self.empty_prompt is None else len(self.empty_prompt),
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return all tensors under their names in [`DDAEModel`]."""
        tensors = {f"denoiser.{key}": value for key, value in self.denoiser.state_dict().items()}
        if self.vae is not None:
            tensors |= {f"vae.{key}": value for key, value in self.vae.state_dict().items()}
        if self.empty_prompt is not None:
            tensors["empty_prompt"] = self.empty_prompt
        return tensors


def read_source(
    source: Any, *, vae: Any = None, scheduler: Any = None, empty_prompt: torch.Tensor | None = None
) -> DiffusionParts:
    """Read the parts of a diffusion model; the arguments are those of [`DDAEModel.from_diffusers`]."""
    if isinstance(source, str | os.PathLike):
        parts = _read_folder(str(source))
    elif hasattr(source, "components") and hasattr(source, "scheduler"):
        parts = _read_components(source.components)
    else:
        parts = DiffusionParts(_checked(source))
    parts.vae = parts.vae if vae is None else _checked_vae(vae)
    parts.scheduler = parts.scheduler if scheduler is None else _schedule(scheduler)
    parts.empty_prompt = parts.empty_prompt if empty_prompt is None else empty_prompt
    if type(parts.denoiser).__name__ == "UNet2DConditionModel" and parts.empty_prompt is None:
        logger.warning(
            "There is no text encoder to encode the empty prompt, so the network sees zeros instead. Give a whole "
            "pipeline, or empty_prompt."
        )
        width = parts.denoiser.config.cross_attention_dim
        parts.empty_prompt = torch.zeros(1, width if isinstance(width, int) else width[0])
    return parts


def is_diffusers_source(source: str) -> bool:
    """Return whether a folder or Hub id holds a pipeline or a network of diffusers, not a model of transformers."""
    try:
        index, config = _json(source, "model_index.json"), _json(source, "config.json") or {}
    except (OSError, ValueError):  # the repository does not exist or cannot be reached
        return False
    return "model_type" not in config and (index is not None or "_class_name" in config)


def _checked(network: Any) -> Any:
    """Check the type of a live network; return the encoder of an l-DAE."""
    if isinstance(network, LDAEForPreTraining):
        return network.ldae
    name = type(network).__name__
    if name not in DENOISERS:
        raise ValueError(
            f"a {name} is not a supported diffusion model; give a pipeline of diffusers, or one of "
            f"{', '.join(DENOISERS)}."
        )
    return network


def _checked_vae(vae: Any) -> Any:
    if type(vae).__name__ != "AutoencoderKL":
        raise ValueError(f"vae is a {type(vae).__name__}; it must be an AutoencoderKL.")
    return vae


def _config_of(network: Any) -> dict[str, Any]:
    """Return the configuration of a live network."""
    if isinstance(network, LDAEModel):
        decoder = len(network.layers) - network.config.num_hidden_layers
        return ldae_fields(network.config) | {"decoder_num_hidden_layers": decoder}
    return {name: network.config[name] for name in field_names(type(network)) if name in network.config}


def _schedule(scheduler: Any) -> dict[str, Any]:
    """Return the configuration of a scheduler that adds noise as DDPM does."""
    config = dict(scheduler if isinstance(scheduler, dict) else scheduler.config)
    if "beta_schedule" not in config and "trained_betas" not in config:
        name = config.get("_class_name", type(scheduler).__name__)
        raise ValueError(f"scheduler is a {name}, which has no betas; it must have a schedule like DDPM's.")
    return config


def _read_components(components: dict[str, Any]) -> DiffusionParts:
    """Read the parts of a pipeline. An LDAEPipeline has its schedule in the model's configuration."""
    if isinstance(components.get("model"), LDAEForPreTraining):
        return DiffusionParts(components["model"].ldae)
    network = _one_network(components)
    parts = DiffusionParts(_checked(components[network]), scheduler=_schedule(components["scheduler"]))
    if components.get("vae") is not None:
        parts.vae = _checked_vae(components["vae"])
    if components.get("text_encoder") is not None and components.get("tokenizer") is not None:
        parts.empty_prompt = _encode_nothing(components["tokenizer"], components["text_encoder"])
    return parts


def _one_network(components: dict[str, Any]) -> str:
    """Return the name of the pipeline's component that is the network."""
    if components.get("vqvae") is not None:
        raise ValueError("the pipeline has a vqvae in front of its network; it must be an AutoencoderKL (vae).")
    found = [name for name in ("unet", "transformer") if components.get(name) is not None]
    if len(found) != 1:
        raise ValueError(
            f"the pipeline has {' and '.join(found) or 'neither unet nor transformer'}; it must have one network."
        )
    return found[0]


@torch.no_grad()
def _encode_nothing(tokenizer: Any, text_encoder: Any) -> torch.Tensor:
    """Encode the empty text as Stable Diffusion does, as a tensor `(L, D)`."""
    length = tokenizer.model_max_length
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    tokens = tokens.to(text_encoder.device)
    masked = getattr(text_encoder.config, "use_attention_mask", False)
    return text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask if masked else None)[0][0]


def _read_folder(source: str) -> DiffusionParts:
    """Read a folder or a Hub id: a pipeline, a network (of a pipeline), or an l-DAE."""
    parent = Path(source).parent
    index = _json(source, "model_index.json")
    if index is None and Path(source).is_dir() and Path(source).name in (_json(str(parent), "model_index.json") or {}):
        source, index = str(parent), _json(str(parent), "model_index.json")
    if index is not None:
        return _read_pipeline(source, index)
    config = _json(source, "config.json")
    if config is None:
        raise ValueError(f"{source} has neither model_index.json nor config.json; give a pipeline or a network.")
    if config.get("model_type") == "ddae":
        raise ValueError(f"{source} is already an encoder; load it with DDAEModel.from_pretrained.")
    if config.get("model_type") == "ldae":
        return DiffusionParts(_load_ldae(source, config))
    return DiffusionParts(_load(source, None, config.get("_class_name", config.get("model_type")), DENOISERS))


def _read_pipeline(source: str, index: dict[str, Any]) -> DiffusionParts:
    """Read a saved pipeline, and load only the components that are needed."""
    named = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and entry[1] is not None}
    name = _one_network(named)
    schedule = _json(source, "scheduler_config.json", "scheduler") or _json(source, "scheduler_config.json")
    if schedule is None:
        raise ValueError(f"{source} has no scheduler_config.json, which describes how noise is added.")
    components = {name: _load(source, name, named[name], DENOISERS), "scheduler": schedule}
    if "vae" in named:
        components["vae"] = _load(source, "vae", named["vae"], ["AutoencoderKL"])
    if "text_encoder" in named and "tokenizer" in named:
        for part in ("tokenizer", "text_encoder"):
            components[part] = getattr(transformers, named[part]).from_pretrained(source, subfolder=part)
    return _read_components(components)


def _load(source: str, part: str | None, name: str | None, known: Any) -> Any:
    """Load a network of diffusers from its folder in a pipeline, or from the root of an old pipeline."""
    if name not in known:
        raise ValueError(f"{source} holds a {name}, which is not supported; choose one of {', '.join(known)}.")
    if part is not None and _json(source, "config.json", part) is None:
        part = None
    return diffusers_class(str(name)).from_pretrained(source, subfolder=part)


def _load_ldae(source: str, config: dict[str, Any]) -> LDAEModel:
    """Load all blocks in an l-DAE's folder, with the decoder if pre-training wrote it."""
    if "LDAEForPreTraining" in (config.get("architectures") or []):
        return LDAEForPreTraining.from_pretrained(source).ldae
    return LDAEModel.from_pretrained(source)


def _json(source: str, name: str, subfolder: str = "") -> dict[str, Any] | None:
    """Read a JSON file of a folder or a Hub repository; return `None` if it does not exist."""
    if Path(source).is_dir():
        path = Path(source, subfolder, name)
        found = str(path) if path.is_file() else None
    else:
        found = cached_file(source, name, subfolder=subfolder, _raise_exceptions_for_missing_entries=False)
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))
