import pytest
import torch

from ldae import DDAEConfig, DDAEForPreTraining, DDAEModel
from ldae.data import iterate_once
from ldae.evaluation.features import extract_features
from ldae.evaluation.untrained import untrained_like
from ldae.models.transformer_ldae import LDAEModulation

from ..models.small_diffusers import small_dit, small_unet, small_vae


def batches(digits):
    return list(iterate_once(digits[1], image_size=16, batch_size=10, limit=30))


def test_untrained_has_the_same_shape_and_tokenizer_and_new_weights(model):
    model.ldae.tokenizer.components.mul_(-1)
    state = torch.random.get_rng_state()
    fresh = untrained_like(model, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(fresh) is type(model) and not fresh.training
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert torch.equal(fresh.ldae.tokenizer.components, model.ldae.tokenizer.components)
    assert not torch.equal(fresh.ldae.layers[0].mlp.fc1.weight, model.ldae.layers[0].mlp.fc1.weight)
    again, other = untrained_like(model, seed=3), untrained_like(model, seed=4)
    assert torch.equal(fresh.ldae.layers[3].mlp.fc2.weight, again.ldae.layers[3].mlp.fc2.weight)
    assert not torch.equal(fresh.ldae.layers[3].mlp.fc2.weight, other.ldae.layers[3].mlp.fc2.weight)


def test_every_block_of_an_untrained_network_takes_part(model, digits):
    for module in model.modules():
        if isinstance(module, LDAEModulation):
            assert 0.4 < module.bias.std() < 0.6
    features = extract_features(model, batches(digits), layers=[1, 2, 3, 4]).values[:, :, 0]
    for block in range(3):
        assert (features[:, block + 1] - features[:, block]).abs().mean() > 0.05


def test_a_bare_trunk_of_all_blocks_keeps_them(model):
    assert len(untrained_like(model.ldae, seed=0).layers) == 4


@pytest.mark.parametrize("kind", ["unet", "attention", "dit"])
def test_every_tap_of_an_untrained_ddae_tells_images_apart(kind, digits):
    networks = {
        "unet": small_unet,
        "attention": lambda: small_unet("AttnDownBlock2D", "AttnUpBlock2D", attention_head_dim=4),
        "dit": small_dit,
    }
    vae = {"vae": small_vae()} if kind == "dit" else {}
    ddae = DDAEModel.from_diffusers(networks[kind](), "last", **vae)
    fresh = untrained_like(ddae, seed=3)
    assert fresh.feature_layers == ddae.feature_layers
    changed = [n for n, p in fresh.denoiser.named_parameters() if not torch.equal(p, ddae.denoiser.get_parameter(n))]
    assert len(changed) >= len([n for n, p in fresh.denoiser.named_parameters() if p.ndim > 1])
    if vae:
        state = ddae.vae.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in fresh.vae.state_dict().items())
    layers = list(fresh.feature_layers)
    values = extract_features(fresh, batches(digits), layers=layers).values[:, :, 0]  # (30, L, C)
    for index, name in enumerate(layers):
        shape = fresh.feature_layers[name]
        tap = values[:, index, : shape[0] if len(shape) == 3 else shape[-1]]
        spread = tap.std(dim=0) / tap.abs().mean()
        assert spread.median() > 1e-3, (name, spread)
        if index:
            assert not torch.allclose(values[:, index], values[:, index - 1], atol=1e-3)
    again = untrained_like(ddae, seed=3)
    assert torch.equal(extract_features(again, batches(digits), layers=layers).values[:, :, 0], values)


def test_the_gates_of_an_untrained_dit_are_open(digits):
    """One that is made to be trained starts with its gates at zero: all of its blocks gave the same features."""
    dit = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "patch_size": 4, "sample_size": 16}
    config = DDAEConfig(
        denoiser_type="DiTTransformer2DModel", denoiser_config=dit | {"in_channels": 3, "num_embeds_ada_norm": 0}
    )
    model = DDAEForPreTraining(config).eval()
    blocks = list(model.ddae.feature_layers)
    closed = extract_features(model.ddae, batches(digits), layers=blocks).values
    torch.testing.assert_close(closed[:, 0], closed[:, -1])
    opened = extract_features(untrained_like(model, seed=0).ddae, batches(digits), layers=blocks).values
    assert (opened[:, 0] - opened[:, -1]).abs().mean() > 0.05
