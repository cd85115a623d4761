"""The denoiser is DiT: at DiT's conditioning width it computes what diffusers' DiTTransformer2DModel does (row 0)."""

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from ldae import LDAEConfig, LDAEForPreTraining, patchify, unpatchify
from ldae.models.transformer_ldae import sincos_positions


CHANNELS, SIDE, PATCH, CLASSES = 4, 8, 2, 5  # of the autoencoder's latent: 16 tokens of d = 16
TINY_VAE = {"block_out_channels": [8, 8], "layers_per_block": 1, "latent_channels": CHANNELS, "norm_num_groups": 4}


def make_dit() -> DiTTransformer2DModel:
    """A tiny DiT with every weight drawn at random (its gates too), whose blocks all hold the same embedders."""
    torch.manual_seed(0)
    dit = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=CHANNELS,
        num_layers=3,
        sample_size=SIDE,
        patch_size=PATCH,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    )
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.2)
    shared = dit.transformer_blocks[0].norm1.emb.state_dict()
    for block in dit.transformer_blocks:
        block.norm1.emb.load_state_dict(shared)
    return dit.double().eval()


def make_ours() -> LDAEForPreTraining:
    config = LDAEConfig(
        image_size=2 * SIDE,
        patch_size=2 * PATCH,
        hidden_size=32,
        num_hidden_layers=2,
        decoder_num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
        conditioning_size=32,
        latent_tokenizer="conv_vae",
        latent_dim=CHANNELS * PATCH**2,
        conv_vae_config=TINY_VAE,
        noise_schedule="linear_beta",
        input_space="latent",
        prediction_target="noise",
        loss_weighting="uniform",
        num_class_embeds=CLASSES,
    )
    return LDAEForPreTraining(config).double().eval()


def weights_of(dit: DiTTransformer2DModel) -> dict[str, torch.Tensor]:
    """DiT's weights by our names."""
    theirs = dit.state_dict()
    emb = "transformer_blocks.0.norm1.emb"
    renamed = {
        "ldae.conditioning.fc1": f"{emb}.timestep_embedder.linear_1",
        "ldae.conditioning.fc2": f"{emb}.timestep_embedder.linear_2",
        "head.modulation": "proj_out_1",
        "head.projection": "proj_out_2",
        "ldae.embeddings.projection": "pos_embed.proj",
    }
    for n in range(len(dit.transformer_blocks)):
        theirs_n = f"transformer_blocks.{n}"
        renamed |= {
            f"ldae.layers.{n}.{ours}": f"{theirs_n}.{name}"
            for ours, name in {
                "modulation": "norm1.linear",
                "attention.q_proj": "attn1.to_q",
                "attention.k_proj": "attn1.to_k",
                "attention.v_proj": "attn1.to_v",
                "attention.o_proj": "attn1.to_out.0",
                "mlp.fc1": "ff.net.0.proj",
                "mlp.fc2": "ff.net.2",
            }.items()
        }
    weights = {f"{ours}.{p}": theirs[f"{name}.{p}"] for ours, name in renamed.items() for p in ("weight", "bias")}
    weights["ldae.conditioning.class_embedding.weight"] = theirs[f"{emb}.class_embedder.embedding_table.weight"]
    # A convolution's kernel (C_out, c, p, p) is a linear map of patches in a convolution's order. The predicted
    # patches are in the order (row, column, channel) there and (channel, row, column) here.
    weights["ldae.embeddings.projection.weight"] = weights["ldae.embeddings.projection.weight"].flatten(1)
    order = torch.arange(PATCH * PATCH * CHANNELS).view(PATCH, PATCH, CHANNELS).permute(2, 0, 1).flatten()
    for p in ("weight", "bias"):
        weights[f"head.projection.{p}"] = weights[f"head.projection.{p}"][order]
    return weights


@pytest.fixture(scope="module")
def both() -> tuple[LDAEForPreTraining, DiTTransformer2DModel]:
    ours, dit = make_ours(), make_dit()
    found = ours.load_state_dict(weights_of(dit), strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("ldae.tokenizer.") for name in found.missing_keys), found.missing_keys
    return ours, dit


def draw(batch: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latent maps (B, c, h, w), time steps from end to end, and every class with the null class."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(batch, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return maps, torch.linspace(0, 999, batch).long(), torch.arange(batch) % (CLASSES + 1)


def test_the_network_equals_dit(both: tuple[LDAEForPreTraining, DiTTransformer2DModel]) -> None:
    ours, dit = both
    maps, timesteps, labels = draw()
    with torch.no_grad():
        expected = dit(maps, timesteps, labels).sample  # (B, c, h, w)
        found = unpatchify(ours.denoise(patchify(maps, PATCH), timesteps, labels), PATCH, SIDE, SIDE)
        without = ours.denoise(patchify(maps, PATCH), timesteps)
        null = dit(maps, timesteps, torch.full_like(labels, CLASSES)).sample
    assert expected.std() > 0.1  # gates and head are open
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(unpatchify(without, PATCH, SIDE, SIDE), null, atol=1e-10, rtol=0)


def test_the_gradients_equal_those_of_dit(both: tuple[LDAEForPreTraining, DiTTransformer2DModel]) -> None:
    ours, dit = both
    maps, timesteps, labels = draw()
    ours.zero_grad(), dit.zero_grad()
    dit(maps, timesteps, labels).sample.square().mean().backward()
    ours.denoise(patchify(maps, PATCH), timesteps, labels).square().mean().backward()
    # Ours holds once what each of their blocks holds a copy of.
    embedders = [block.norm1.emb for block in dit.transformer_blocks]
    pairs = [
        (ours.ldae.layers[1].attention.k_proj.weight, [dit.transformer_blocks[1].attn1.to_k.weight]),
        (ours.ldae.layers[2].modulation.weight, [dit.transformer_blocks[2].norm1.linear.weight]),
        (ours.head.modulation.bias, [dit.proj_out_1.bias]),
        (ours.ldae.conditioning.fc1.weight, [e.timestep_embedder.linear_1.weight for e in embedders]),
        (ours.ldae.conditioning.class_embedding.weight, [e.class_embedder.embedding_table.weight for e in embedders]),
    ]
    for found, expected in pairs:
        total = sum(parameter.grad for parameter in expected)
        assert total.abs().max() > 1e-4
        torch.testing.assert_close(found.grad, total, atol=1e-10, rtol=1e-8)


def test_the_positions_are_those_of_dit(both: tuple[LDAEForPreTraining, DiTTransformer2DModel]) -> None:
    assert torch.equal(sincos_positions(32, 4, 4, 4).double(), both[1].pos_embed.pos_embed)
