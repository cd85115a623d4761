"""The families of models, with what the model cards, the remote code, the exports and the demo say of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ldae.models import (
    backbone_ddae,
    image_processing_ldae,
    pretraining_ddae,
    pretraining_ldae,
)
from ldae.models.configuration_ddae import DDAEConfig
from ldae.models.configuration_ldae import LDAEConfig


@dataclass(frozen=True)
class Family:
    """A family of models."""

    name: str  # in prose
    title: str  # the name with its article
    summary: Callable[[Any], str]  # describes a configuration in a few words
    config_class: Any
    pipeline: str  # name of its pipeline class in ldae
    layer_kind: str  # what a layer that features are read after is called
    noisy: str  # what its noisy images are called
    place: str  # what one vector of last_hidden_state belongs to
    citation: str  # BibTeX entry of its paper
    entry_files: tuple[str, ...]  # files whose relative imports reach all of its code
    auto_map: dict[str, str]  # for each auto class the class that remote code gives it


FAMILIES = {
    "ldae": Family(
        name="l-DAE",
        title="an l-DAE",
        summary=lambda c: (
            f"{c.num_hidden_layers} encoder and {c.decoder_num_hidden_layers} decoder blocks of width "
            f"{c.hidden_size}, patches of {c.patch_size}x{c.patch_size} as {c.latent_dim} latents"
        ),
        config_class=LDAEConfig,
        pipeline="LDAEPipeline",
        layer_kind="block",
        noisy="latent-noised",
        place="patch",
        citation="""@article{chen2024deconstructing,
  title   = {Deconstructing Denoising Diffusion Models for Self-Supervised Learning},
  author  = {Chen, Xinlei and Liu, Zhuang and Xie, Saining and He, Kaiming},
  journal = {arXiv preprint arXiv:2401.14404},
  year    = {2024}
}""",
        entry_files=(pretraining_ldae.__file__, image_processing_ldae.__file__),
        auto_map={
            "AutoConfig": "configuration_ldae.LDAEConfig",
            "AutoModel": "modeling_ldae.LDAEModel",
            "AutoModelForPreTraining": "pretraining_ldae.LDAEForPreTraining",
            "AutoModelForImageClassification": "modeling_ldae.LDAEForImageClassification",
            "AutoBackbone": "modeling_ldae.LDAEBackbone",
        },
    ),
    "ddae": Family(
        name="DDAE",
        title="a DDAE",
        summary=lambda c: f"a {c.denoiser_type}, features {c.hidden_size} wide",
        config_class=DDAEConfig,
        pipeline="DDAEPipeline",
        layer_kind="tap",
        noisy="noisy",
        place="place of the map",
        citation="""@inproceedings{xiang2023denoising,
  title     = {Denoising Diffusion Autoencoders are Unified Self-supervised Learners},
  author    = {Xiang, Weilai and Yang, Hongyu and Huang, Di and Wang, Yunhong},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year      = {2023}
}""",
        entry_files=(pretraining_ddae.__file__, backbone_ddae.__file__, image_processing_ldae.__file__),
        auto_map={
            "AutoConfig": "configuration_ddae.DDAEConfig",
            "AutoModel": "modeling_ddae.DDAEModel",
            "AutoModelForPreTraining": "pretraining_ddae.DDAEForPreTraining",
            "AutoModelForImageClassification": "modeling_ddae.DDAEForImageClassification",
            "AutoBackbone": "backbone_ddae.DDAEBackbone",
        },
    ),
}


def family_of(model_type: str | None, where: object, remedy: str) -> Family:
    """Return the family of a `model_type`.

    Raises:
        ValueError: If the model is of neither family; the message says where it was found, and the remedy.
    """
    if model_type not in FAMILIES:
        known = " or ".join(map(repr, FAMILIES))
        raise ValueError(f"{where} has model_type={model_type!r}; it must be {known}. {remedy}")
    return FAMILIES[model_type]
