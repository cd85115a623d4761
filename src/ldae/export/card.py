"""Model cards of exported folders."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ldae.hub.families import FAMILIES
from ldae.hub.model_card import DEFAULT_LICENSE, read_license
from ldae.hub.upload import CARD_FILE, seal_card


TEMPLATE = Path(__file__).with_name("card_template.md")
LIBRARIES = {"transformers": "transformers", "timm": "timm", "onnx": "onnx", "torch-export": "pytorch"}


def write_card(
    folder: Path,
    facts: dict[str, Any],
    checkpoint: str | os.PathLike[str],
    *,
    repo_id: str,
    license: str | None = None,
) -> None:
    """Write the README.md of an exported folder from the content of its `export.json`.

    The title and the code name `repo_id`. The licence is by default that of the checkpoint's card, or "apache-2.0".
    """
    license = license or read_license(checkpoint) or DEFAULT_LICENSE
    classifies = facts["id2label"] is not None
    card_data = ModelCardData(
        model_name=repo_id.rsplit("/", 1)[-1],
        license=license,
        library_name=LIBRARIES[facts["format"]],
        pipeline_tag="image-classification" if classifies else "image-feature-extraction",
        tags=[facts["model_type"], "self-supervised-learning", "denoising-autoencoder"],
        base_model=None if os.path.isdir(checkpoint) else str(checkpoint),
    )
    card = ModelCard.from_template(
        card_data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        model_id=repo_id,
        license=license,
        classifies=classifies,
        image_mode="L" if facts["num_channels"] == 1 else "RGB",
        family=FAMILIES[facts["model_type"]],
        **facts,
    )
    (folder / CARD_FILE).write_text(seal_card(str(card)), encoding="utf-8")
