"""from_diffusers: pipelines saved by plain diffusers code, their parts, live objects, the Hub; what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DiffusionPipeline,
    EDMEulerScheduler,
    UNet2DModel,
    VQModel,
)
from safetensors.torch import load_file
from transformers import AutoModel, ViTConfig, ViTModel

from ldae import DDAEModel, LDAEForPreTraining, LDAEModel, LDAEPipeline, LDAEScheduler
from ldae.models.features_ldae import tokens_of
from tests.models.small_diffusers import small_conditional_unet, small_dit, small_unet, small_vae
from tests.models.small_models import draw_images, open_gates, small_config
from tests.processes import NO_LDAE, ForkedProcess


PLAIN_DIFFUSERS = (
    NO_LDAE
    + """
import json
from pathlib import Path
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel, UNet2DModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

folder = Path(sys.argv[1])
torch.manual_seed(0)
levels = {"block_out_channels": (8, 16), "norm_num_groups": 4}
images = torch.rand(2, 3, 16, 16) * 2 - 1
seen = {"images": images}

def watch(name, module):
    def hook(module, args, out):
        seen[name] = out[0].contiguous() if isinstance(out, tuple) else out.contiguous()
    module.register_forward_hook(hook)

unet = UNet2DModel(
    sample_size=16, layers_per_block=1, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"), **levels,
).eval()
watch("ddpm", unet.up_blocks[0].attentions[1])
schedule = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
DDPMPipeline(unet, schedule).save_pretrained(folder / "ddpm")
with torch.no_grad():
    unet(schedule.alphas_cumprod[10].sqrt() * images, 10)

vae = AutoencoderKL(
    latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **levels
).eval()
dit = DiTTransformer2DModel(
    sample_size=8, num_layers=3, num_attention_heads=2, attention_head_dim=8, num_embeds_ada_norm=10, norm_num_groups=4
).eval()
watch("dit", dit.transformer_blocks[1])
ddim = DDIMScheduler()
DiTPipeline(dit, vae, ddim).save_pretrained(folder / "dit")
with torch.no_grad():
    z = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
    dit(ddim.alphas_cumprod[121].sqrt() * z, torch.tensor([121, 121]), torch.tensor([10, 10]))

letters = [chr(c) for c in range(97, 123)]
words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
(folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
(folder / "merges.txt").write_text("#version: 0.2\\n")
tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=7)
clip = CLIPTextConfig(
    vocab_size=len(words), hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=7, bos_token_id=0, eos_token_id=1, pad_token_id=1,
)
text_encoder = CLIPTextModel(clip).eval()
conditional = UNet2DConditionModel(
    sample_size=8, layers_per_block=1, cross_attention_dim=12, attention_head_dim=2,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **levels,
).eval()
watch("stable_diffusion", conditional.up_blocks[0].resnets[1])
pndm = PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
parts = (vae, text_encoder, tokenizer, conditional, pndm, None, None)
pipeline = StableDiffusionPipeline(*parts, requires_safety_checker=False)
pipeline.save_pretrained(folder / "stable_diffusion")
with torch.no_grad():
    _, empty = pipeline.encode_prompt("an oak", "cpu", 1, True, negative_prompt="")
    conditional(pndm.alphas_cumprod[10].sqrt() * z, 10, empty.expand(2, -1, -1))

save_file(seen, folder / "seen.safetensors")
"""
)


@pytest.fixture(autouse=True)
def one_thread():
    """As the process that saved the pipelines had: sums over several threads end in other last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines that a process without ldae has left, and what hooks in it saw."""
    folder = tmp_path_factory.mktemp("plain_diffusers")
    script = folder / "script.py"
    script.write_text(PLAIN_DIFFUSERS)
    done = ForkedProcess(script, folder, folder=folder, without_ldae=True).wait()
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


TAPS = {"ddpm": "up_blocks.0.attentions.1", "dit": "transformer_blocks.1", "stable_diffusion": "up_blocks.0.resnets.1"}


@pytest.mark.parametrize("name", TAPS)
@torch.no_grad()
def test_saved_pipelines_become_encoders_that_give_what_hooks_saw(name: str, saved: Path, tmp_path: Path) -> None:
    seen = load_file(saved / "seen.safetensors")
    expected, images = tokens_of(seen[name]), seen["images"].clone()
    model = DDAEModel.from_diffusers(saved / name)
    assert model.config.feature_layer == TAPS[name]
    assert not model.training
    assert torch.equal(model(images).last_hidden_state, expected)
    live = DDAEModel.from_diffusers(DiffusionPipeline.from_pretrained(saved / name))
    assert live.config.to_dict() == model.config.to_dict()
    torch.testing.assert_close(live(images).last_hidden_state, expected)
    part = "transformer" if name == "dit" else "unet"
    assert torch.equal(DDAEModel.from_diffusers(saved / name / part)(images).last_hidden_state, expected)
    model.save_pretrained(tmp_path)
    assert str(saved) not in (tmp_path / "config.json").read_text()
    loaded = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(images).last_hidden_state, expected)
    for parameter in loaded.parameters():  # a memory-mapped file is not aligned, and kernels then round differently
        parameter.data = parameter.data.clone()
    assert torch.equal(loaded(images).last_hidden_state, expected)


def test_old_pipelines_with_everything_at_their_root(saved: Path, tmp_path: Path) -> None:
    shutil.copy(saved / "ddpm/model_index.json", tmp_path)
    for path in [*(saved / "ddpm/unet").iterdir(), saved / "ddpm/scheduler/scheduler_config.json"]:
        shutil.copy(path, tmp_path)
    expected = DDAEModel.from_diffusers(saved / "ddpm")
    model = DDAEModel.from_diffusers(tmp_path)
    assert model.config.to_dict() == expected.config.to_dict()
    images = draw_images()
    assert torch.equal(model(images).pooler_output, expected(images).pooler_output)


def test_a_network_s_folder_alone_takes_what_is_given_beside_it(tmp_path: Path) -> None:
    small_dit().save_pretrained(tmp_path / "dit")
    alone = DDAEModel.from_diffusers(tmp_path / "dit")
    assert (alone.config.num_channels, alone.config.image_size, alone.config.vae_config) == (4, 8, None)
    scheduler = DDIMScheduler(num_train_timesteps=200, beta_end=0.1)
    model = DDAEModel.from_diffusers(
        tmp_path / "dit", "transformer_blocks.0", 5, vae=small_vae(), scheduler=scheduler, image_size=32
    )
    assert (model.config.num_channels, model.config.image_size, model.config.feature_timestep) == (3, 32, 5)
    assert model.feature_layers == {"transformer_blocks.0": (64, 16)}
    assert torch.equal(model.corruption.gammas, scheduler.alphas_cumprod.sqrt())
    assert DDAEModel.from_diffusers(tmp_path / "dit", scheduler=scheduler).config.feature_timestep == 2  # 10 of 1000


def test_a_prompt_that_nobody_knows_is_zeros_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    model = DDAEModel.from_diffusers(small_conditional_unet())
    assert "the network sees zeros instead" in caplog.text
    assert model.empty_prompt.shape == (1, 12)
    assert not model.empty_prompt.any()


def test_the_source_s_dtype_is_kept_and_the_source_is_not_shared() -> None:
    unet = small_unet().to(torch.bfloat16)
    model = DDAEModel.from_diffusers(unet)
    assert model.dtype == torch.bfloat16
    before = model.denoiser.conv_in.weight.clone()
    torch.nn.init.zeros_(unet.conv_in.weight)
    assert torch.equal(model.denoiser.conv_in.weight, before)


@torch.no_grad()
def test_an_ldae_s_folder_gives_all_of_its_blocks(tmp_path: Path) -> None:
    images = draw_images()
    denoiser = open_gates(LDAEForPreTraining(small_config()))
    denoiser.save_pretrained(tmp_path / "run")
    denoiser.ldae.eval()
    model = DDAEModel.from_diffusers(tmp_path / "run")
    expected = AutoModel.from_pretrained(tmp_path / "run")(images)
    torch.testing.assert_close(model(images).pooler_output, expected.pooler_output)
    deepest = DDAEModel.from_diffusers(tmp_path / "run", "last")
    assert list(deepest.feature_layers) == ["layers.0", "layers.1", "layers.2"]
    hidden = denoiser.ldae(images, output_hidden_states=[3]).hidden_states[3]
    torch.testing.assert_close(deepest(images).last_hidden_state, denoiser.ldae.normalize(hidden))
    pipeline = LDAEPipeline(denoiser, LDAEScheduler.from_ldae_config(denoiser.config))
    for live in (denoiser, pipeline):
        assert list(DDAEModel.from_diffusers(live, "last").feature_layers) == list(deepest.feature_layers)
    LDAEModel.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "encoder")
    encoder = DDAEModel.from_diffusers(tmp_path / "encoder", "last")
    assert list(encoder.feature_layers) == ["layers.0", "layers.1"]


def write_index(folder: Path, **components: Any) -> Path:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline", **components}))
    return folder


def test_what_is_no_diffusion_model_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has neither model_index.json nor config.json"):
        DDAEModel.from_diffusers(tmp_path)
    vit = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ValueError, match="a ViTModel is not a supported diffusion model"):
        DDAEModel.from_diffusers(vit)
    vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="holds a vit, which is not supported; choose one of UNet2DModel"):
        DDAEModel.from_diffusers(tmp_path / "vit")
    DDAEModel.from_diffusers(small_unet()).save_pretrained(tmp_path / "ddae")
    with pytest.raises(ValueError, match=r"is already an encoder; load it with DDAEModel.from_pretrained"):
        DDAEModel.from_diffusers(tmp_path / "ddae")
    unet = ["diffusers", "UNet2DModel"]
    with pytest.raises(ValueError, match="has a vqvae in front of its network"):
        DDAEModel.from_diffusers(write_index(tmp_path, unet=unet, vqvae=["diffusers", "VQModel"]))
    with pytest.raises(ValueError, match="has unet and transformer; it must have one network"):
        DDAEModel.from_diffusers(write_index(tmp_path, unet=unet, transformer=unet))
    with pytest.raises(ValueError, match="has neither unet nor transformer"):
        DDAEModel.from_diffusers(write_index(tmp_path, prior=unet))
    with pytest.raises(ValueError, match=r"has no scheduler_config.json"):
        DDAEModel.from_diffusers(write_index(tmp_path, unet=unet))
    shutil.copy(saved / "ddpm/scheduler/scheduler_config.json", tmp_path)
    with pytest.raises(ValueError, match="holds a UNet3DConditionModel, which is not supported"):
        DDAEModel.from_diffusers(write_index(tmp_path, unet=["diffusers", "UNet3DConditionModel"]))


def test_parts_of_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="scheduler is a EDMEulerScheduler, which has no betas"):
        DDAEModel.from_diffusers(DDPMPipeline(small_unet(), EDMEulerScheduler()))
    vq = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    with pytest.raises(ValueError, match="vae is a VQModel; it must be an AutoencoderKL"):
        DDAEModel.from_diffusers(small_dit(), vae=vq)
    with pytest.raises(ValueError, match="must be one whose latent_channels are the network's in_channels=3"):
        DDAEModel.from_diffusers(small_unet(), vae=small_vae())
    with pytest.raises(ValueError, match="image_size is missing"):
        DDAEModel.from_diffusers(small_unet(sample_size=None))
    with pytest.raises(ValueError, match="addition_embed_type='text_time' is not supported"):
        DDAEModel.from_diffusers(
            small_conditional_unet(
                addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=8
            )
        )


def test_adapters_are_refused() -> None:
    unet = small_unet()
    unet.conv_in = torch.nn.Sequential(unet.conv_in)  # as an adapter's wrapper renames what it wraps
    with pytest.raises(ValueError, match=r"the network lacks denoiser.conv_in.bias .* adapters \(LoRA\)"):
        DDAEModel.from_diffusers(unet)
    assert isinstance(unet, UNet2DModel)
