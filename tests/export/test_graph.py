import pytest
import torch

from ldae import DDAEModel, LDAEModel
from ldae.export.graph import FixedStep, run_onnx, run_program, save_onnx, save_program, trace
from tests.export.test_fold import LATENT, SMALL_CONV_VAE
from tests.models.small_diffusers import small_dit, small_unet, small_vae
from tests.models.small_models import draw_images, open_gates, small_config


def conv_vae() -> tuple[LDAEModel, torch.nn.Module]:
    model = open_gates(LDAEModel(small_config(num_hidden_layers=1, **SMALL_CONV_VAE, **LATENT)))
    return model, FixedStep(model, 11)


def unet() -> tuple[DDAEModel, torch.nn.Module]:
    level = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    model = DDAEModel.from_diffusers(small_unet(**level, add_attention=False))
    return model, FixedStep(model, 11)


def latent_dit() -> tuple[DDAEModel, torch.nn.Module]:
    level = {"block_out_channels": (4,), "norm_num_groups": 2}
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    model = DDAEModel.from_diffusers(small_dit(num_layers=1), "last", vae=small_vae(**level, **kinds))
    return model, FixedStep(model, 11)


SLOW = [pytest.param(make, marks=pytest.mark.slow) for make in (conv_vae, latent_dit)]


@pytest.mark.parametrize("make", [unet, *SLOW])
@torch.no_grad()
def test_a_graph_computes_what_the_model_does_for_any_batch(make, tmp_path):
    model, module = make()
    size = model.config.image_size
    program = trace(module, 3, size)
    save_program(program, tmp_path)
    save_onnx(program, tmp_path, ["last_hidden_state", "pooler_output"])
    for batch in (1, 5):
        images = draw_images(batch, height=size, width=size)
        expected = model(images, torch.tensor([11]))
        for run in (run_program, run_onnx):
            found = run(tmp_path, images)
            for name in ("last_hidden_state", "pooler_output"):
                torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-5)


def test_what_torch_cannot_trace_is_named():
    class Branching(torch.nn.Module):
        def forward(self, pixel_values):
            return {"logits": pixel_values if pixel_values.sum() > 0 else -pixel_values}

    with pytest.raises(ValueError, match=r"torch\.export cannot trace Branching at image_size=8"):
        trace(Branching(), 3, 8)
