"""Image processors of exported folders, which transformers 4 and 5 load."""

import json
import os
from pathlib import Path
from typing import Any

from ldae.data.image_processor import image_processor_settings


def save_portable_processor(folder: str | os.PathLike[str], config: Any, image_size: int) -> None:
    """Write a `preprocessor_config.json` that gives the same pixels as a checkpoint's own, at `image_size` pixels.

    It names `CLIPImageProcessor`, because the `ViTImageProcessor` of transformers 4 can neither resize to the shortest
    edge nor crop to the centre. It does not scale 16-bit values or composite transparency, so the export's card says
    how to convert such images first.
    """
    settings = image_processor_settings(config) | {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": image_size},
        "crop_size": {"height": image_size, "width": image_size},
    }
    del settings["auto_map"]  # an export carries no code of ours
    Path(folder, "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
