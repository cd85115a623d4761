"""The image processor of a checkpoint, with the settings of the training data."""

import json
import os
from pathlib import Path
from typing import Any

from ldae.models.configuration_ddae import DDAEConfig
from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.image_processing_ldae import LDAEImageProcessor


def image_processor_settings(config: LDAEConfig | DDAEConfig) -> dict[str, Any]:
    """Return the content of a `preprocessor_config.json`: shortest edge (bicubic), centre crop, [-1, 1]."""
    size, channels = config.image_size, config.num_channels or 3
    return {
        "image_processor_type": LDAEImageProcessor.__name__,
        "auto_map": {"AutoImageProcessor": "image_processing_ldae.LDAEImageProcessor"},  # where ldae is not installed
        "do_convert_rgb": channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * channels,
        "image_std": [0.5] * channels,
    }


def save_image_processor(folder: str | os.PathLike[str], config: LDAEConfig | DDAEConfig) -> None:
    """Write `preprocessor_config.json` into a folder, so that `AutoImageProcessor` and pipelines load it."""
    text = json.dumps(image_processor_settings(config), indent=2) + "\n"
    Path(folder, "preprocessor_config.json").write_text(text)
