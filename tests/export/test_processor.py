import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from ldae import save_image_processor
from ldae.data import decode_image
from ldae.export.card import TEMPLATE
from ldae.export.checkpoint import save_portable_processor
from tests.data.image_files import write_every_kind
from tests.models.small_models import small_config


@pytest.mark.parametrize(("channels", "shape"), [(3, (40, 29, 3)), (1, (40, 29))])
def test_it_gives_the_checkpoints_pixels(tmp_path, channels, shape):
    config = small_config(num_channels=channels, latent_dim=6)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    pixels = []
    for save, arguments in ((save_image_processor, (config,)), (save_portable_processor, (config, config.image_size))):
        folder = tmp_path / save.__name__
        folder.mkdir()
        save(folder, *arguments)
        pixels.append(AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"])
    assert pixels[0].shape == (1, channels, 16, 16)
    assert torch.equal(*pixels)


def test_it_makes_images_of_the_exported_size(tmp_path):
    save_portable_processor(tmp_path, small_config(), 24)
    made = AutoImageProcessor.from_pretrained(tmp_path)(Image.new("RGB", (50, 60)), return_tensors="pt")
    assert made["pixel_values"].shape == (1, 3, 24, 24)


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_the_cards_conversion_gives_the_checkpoints_pixels_of_every_kind_of_image(tmp_path, channels, mode):
    write_every_kind(tmp_path)
    files = sorted(tmp_path.iterdir())
    save_portable_processor(tmp_path, small_config(num_channels=channels, latent_dim=6), 16)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", TEMPLATE.read_text(), re.DOTALL) if "def " in block
    )
    names = {}
    exec(code.replace("{{ image_mode }}", mode), names)
    for file in files:
        if (file.name, mode) == ("lab.tif", "L"):
            continue  # Pillow cannot convert it directly
        pixels = processor(names["convert"](Image.open(file)), return_tensors="pt")["pixel_values"][0]
        expected = torch.tensor(decode_image(file.read_bytes(), channels, 16)[0]) / 127.5 - 1
        assert torch.allclose(pixels, expected, atol=1e-5), file.name
