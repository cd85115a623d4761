"""A checkpoint of each row loads as an encoder, in a process that knows nothing but its folder."""

from pathlib import Path

import torch

from ldae import LDAEForPreTraining
from ldae.data.image_processor import save_image_processor
from ldae.deconstruct.preset import load_preset
from ldae.deconstruct.variants import list_variants, variant_recipe


PRESET = Path(__file__).parents[2] / "training" / "recipes" / "deconstruction" / "digits.yaml"
LOAD = """
import sys, PIL.Image, torch
import ldae
from transformers import AutoImageProcessor, AutoModel, pipeline
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
image = PIL.Image.linear_gradient("L").convert("RGB")
for folder in sys.argv[1:]:
    encoder = AutoModel.from_pretrained(folder)
    features = pipeline("image-feature-extraction", model=folder)(image, pool=True, return_tensors=True)
    pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    assert features.shape == (1, 128) and features.std() > 0.1, folder
    assert torch.allclose(encoder(pixels).pooler_output, features, atol=1e-5), folder
    print(folder)
"""


def test_every_row_loads_with_automodel_and_gives_features_through_a_pipeline(tmp_path, run_python):
    preset = load_preset(PRESET)
    variants = list_variants(preset)
    assert len(variants) == 15
    folders = []
    for variant in variants:
        config = variant_recipe(variant, preset, 0, tmp_path, 10).model_config()
        folder = tmp_path / variant.name
        torch.manual_seed(0)
        LDAEForPreTraining(config).save_pretrained(folder)
        save_image_processor(folder, config)
        folders.append(str(folder))
    assert run_python(LOAD, *folders).stdout.split() == folders
