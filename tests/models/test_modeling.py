"""What the four models compute, and what they hand out and refuse."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ldae import LDAEBackbone, LDAEConfig, LDAEForImageClassification, LDAEForPreTraining, LDAEModel, patchify
from ldae.models.corruption_ldae import corrupt
from ldae.models.transformer_ldae import LDAEHeadProjection, LDAEModulation
from tests.models.small_models import draw_corruption, draw_images, open_gates, small_config


@pytest.fixture(scope="module")
def encoder() -> LDAEModel:
    return open_gates(LDAEModel(small_config()))


@pytest.fixture(scope="module")
def denoiser() -> LDAEForPreTraining:
    return open_gates(LDAEForPreTraining(small_config()))


def test_gates_and_head_start_at_zero_and_nothing_else_does() -> None:
    model = LDAEForPreTraining(small_config(num_class_embeds=3))
    zero = {name for name, p in model.named_parameters() if not p.any()}
    modules = dict(model.named_modules())
    gated = {
        f"{name}.{kind}"
        for name, m in modules.items()
        for kind in ("weight", "bias")
        if isinstance(m, LDAEModulation | LDAEHeadProjection)
    }
    biases = {f"{name}.bias" for name, m in modules.items() if isinstance(m, nn.Linear)}
    assert zero == gated | biases
    assert len(gated) == 2 * (3 + 2)


@pytest.mark.parametrize("width", [64, 128, 192, 384, 768])
def test_the_conditioning_starts_at_one_scale_in_every_width(width: int) -> None:
    """Drawn with a standard deviation of 0.02, its RMS was 0.007 at width 128: the gates hardly opened."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 2}
    model = LDAEModel(LDAEConfig(**sizes, num_hidden_layers=1, decoder_num_hidden_layers=0))
    conditioning = model.conditioning(torch.arange(1000))  # (T, c)
    assert 0.1 < conditioning.square().mean().sqrt() < 0.6
    assert conditioning.std(dim=0).mean() > 0.05  # and it tells time steps apart


def test_a_fresh_denoiser_is_the_identity_and_predicts_zeros() -> None:
    model = LDAEForPreTraining(small_config())
    outputs = model(draw_images(), *draw_corruption(), output_hidden_states=True)
    assert torch.equal(outputs.prediction, torch.zeros(3, 16, 48))
    assert all(torch.equal(h, outputs.hidden_states[0]) for h in outputs.hidden_states)
    outputs.loss.backward()
    assert model.head.projection.weight.grad.any()


def test_features_are_deterministic_and_normalised(encoder: LDAEModel) -> None:
    images = draw_images()
    outputs, again = encoder(images), encoder(images)
    assert torch.equal(outputs.last_hidden_state, again.last_hidden_state)
    features = outputs.last_hidden_state  # (B, N, C)
    assert torch.equal(outputs.pooler_output, features.mean(dim=1))
    torch.testing.assert_close(features.mean(dim=2), torch.zeros(3, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.var(dim=2, unbiased=False), torch.ones(3, 16), atol=1e-3, rtol=0)
    raw = encoder(images, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(encoder.normalize(raw), features)
    assert (raw - features).abs().max() > 0.1


def test_a_time_step_shared_by_the_batch_equals_one_for_each(encoder: LDAEModel) -> None:
    images, (_, eps) = draw_images(), draw_corruption()
    for noise in (None, eps):
        shared = encoder(images, torch.tensor([10]), noise).last_hidden_state
        each = encoder(images, torch.tensor([10, 10, 10]), noise).last_hidden_state
        torch.testing.assert_close(shared, each, atol=1e-5, rtol=0)
        torch.testing.assert_close(encoder(images, None, noise).last_hidden_state, shared, atol=0, rtol=0)
    one = torch.cat([encoder(images[i : i + 1], torch.tensor([t])).pooler_output for i, t in enumerate((0, 500, 999))])
    torch.testing.assert_close(encoder(images, torch.tensor([0, 500, 999])).pooler_output, one, atol=1e-5, rtol=0)
    assert (encoder(images, torch.tensor([999])).pooler_output - encoder(images).pooler_output).abs().max() > 1e-3


def test_a_clean_input_is_one_without_noise_and_is_projected_unless_asked(encoder: LDAEModel) -> None:
    images = draw_images()
    clean = encoder(images).last_hidden_state
    torch.testing.assert_close(
        encoder(images, noise=torch.zeros(3, 16, 8)).last_hidden_state, clean, atol=1e-6, rtol=0
    )
    tokenizer = encoder.tokenizer
    x0 = patchify(images, 4)
    projected = tokenizer.decode(tokenizer.encode(x0))  # (B, N, D)
    back = projected.view(3, 4, 4, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(3, 3, 16, 16)
    torch.testing.assert_close(encoder(back).last_hidden_state, clean, atol=1e-4, rtol=0)

    whole = open_gates(LDAEModel(small_config(project_clean_input=False)))
    whole.load_state_dict(encoder.state_dict())
    assert (whole(images).last_hidden_state - clean).abs().max() > 1e-2
    torch.testing.assert_close(whole(back).last_hidden_state, clean, atol=1e-4, rtol=0)
    eps = draw_corruption()[1]
    assert torch.equal(whole(images, noise=eps).last_hidden_state, encoder(images, noise=eps).last_hidden_state)


@pytest.mark.parametrize("schedule", ["linear_beta", "linear_gamma2", "linear_sigma", "constant"])
@pytest.mark.parametrize("input_space", ["latent", "image"])
def test_blocks_see_the_corrupted_latent_or_its_image(schedule: str, input_space: str) -> None:
    model = open_gates(LDAEModel(small_config(noise_schedule=schedule, input_space=input_space)))
    x0, (timesteps, eps) = patchify(draw_images(), 4), draw_corruption()
    z0 = model.tokenizer.encode(x0)
    zt = corrupt(z0, eps, model.corruption.gammas[timesteps], model.corruption.sigmas[timesteps])
    expected = zt if input_space == "latent" else model.tokenizer.decode(zt)
    assert torch.equal(model.blocks_input(model.corruption(z0, eps, timesteps)), expected)
    seen = []
    handle = model.embeddings.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(draw_images(), timesteps, eps)
    handle.remove()
    assert torch.equal(seen[0], expected)


def test_classes_condition_and_the_null_class_is_the_default() -> None:
    config = small_config(num_class_embeds=5)
    model = open_gates(LDAEForPreTraining(config))
    arguments = (draw_images(), *draw_corruption())
    null = model(*arguments).prediction
    assert torch.equal(model(*arguments, class_labels=torch.tensor([5, 5, 5])).prediction, null)
    labelled = model(*arguments, class_labels=torch.tensor([5, 0, 1])).prediction
    torch.testing.assert_close(labelled[0], null[0], atol=1e-6, rtol=0)
    assert (labelled[1:] - null[1:]).abs().amax(dim=(1, 2)).min() > 1e-3
    features = open_gates(LDAEModel(config))(draw_images())  # at a shared t the null class too
    assert features.pooler_output.isfinite().all()


def test_labels_are_refused_where_training_knows_none(denoiser: LDAEForPreTraining) -> None:
    with pytest.raises(ValueError, match="class_labels was given, but num_class_embeds=None"):
        denoiser(draw_images(), *draw_corruption(), class_labels=torch.tensor([0, 1, 2]))


def test_labels_are_dropped_by_position_alone() -> None:
    model = LDAEForPreTraining(small_config(num_class_embeds=5, class_dropout_prob=0.25))
    positions = torch.arange(4000)
    kept = model.drop_labels(positions % 5, positions, seed=1)
    dropped = kept == 5
    assert 0.22 < dropped.float().mean() < 0.28
    assert torch.equal(kept[~dropped], (positions % 5)[~dropped])
    assert torch.equal(model.drop_labels(positions[100:] % 5, positions[100:], seed=1), kept[100:])
    assert not torch.equal(model.drop_labels(positions % 5, positions, seed=2), kept)


def test_corruption_is_drawn_by_position_alone(denoiser: LDAEForPreTraining) -> None:
    positions = torch.arange(2000)
    timesteps, noise = denoiser.draw_corruption(positions, seed=4)
    assert (timesteps.shape, timesteps.dtype, noise.shape, noise.dtype) == (
        (2000,),
        torch.int64,
        (2000, 16, 8),
        torch.float32,
    )
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999
    assert abs(timesteps.float().mean() - 499.5) < 25
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    some = denoiser.draw_corruption(positions[[7, 3]], seed=4)
    assert torch.equal(some[0], timesteps[[7, 3]])
    assert torch.equal(some[1], noise[[7, 3]])
    assert not torch.equal(denoiser.draw_corruption(positions, seed=5)[0], timesteps)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 1, 16, 16), {}, "pixel_values has 1 channels; the model was made for num_channels=3"),
        ((1, 3, 32, 32), {}, "pixel_values is 32x32; the model was made for image_size=16"),
        ((1, 3, 16, 20), {}, "pixel_values is 16x20; .* interpolate_pos_encoding=True"),
        ((1, 3, 18, 16), {"interpolate_pos_encoding": True}, "pixel_values is 18x16; both must be multiples of 4"),
        ((3, 16, 16), {}, r"pixel_values has shape \(3, 16, 16\); .* give pixel_values\[None\]"),
    ],
)
def test_other_images_are_refused(encoder: LDAEModel, shape: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(torch.zeros(shape), **options)


def test_other_sizes_on_request(encoder: LDAEModel) -> None:
    same = encoder(draw_images(), interpolate_pos_encoding=True)
    assert torch.equal(same.last_hidden_state, encoder(draw_images()).last_hidden_state)
    wide = encoder(draw_images(height=24, width=32), interpolate_pos_encoding=True)
    assert wide.last_hidden_state.shape == (3, 6 * 8, 32)
    positions = encoder.embeddings.positions
    assert torch.equal(positions(4, 4), encoder.embeddings.position_embeddings)
    # Twice as fine a grid has the same range: neighbours' mean coordinate is the coarse patch's, so low frequencies
    # agree.
    coarse, fine = positions(4, 4).view(4, 4, 32), positions(8, 8).view(8, 8, 32)
    low = torch.nn.functional.avg_pool2d(fine.permute(2, 0, 1), 2).permute(1, 2, 0)[..., [7, 15, 23, 31]]
    torch.testing.assert_close(low, coarse[..., [7, 15, 23, 31]], atol=1e-4, rtol=0)


def test_eager_attention_equals_sdpa(encoder: LDAEModel) -> None:
    eager = copy.deepcopy(encoder)
    eager.set_attn_implementation("eager")
    expected = encoder(draw_images()).last_hidden_state
    outputs = eager(draw_images(), output_attentions=True)
    torch.testing.assert_close(outputs.last_hidden_state, expected, atol=1e-5, rtol=0)
    assert [a.shape for a in outputs.attentions] == [(3, 4, 16, 16)] * 2
    torch.testing.assert_close(outputs.attentions[1].sum(dim=-1), torch.ones(3, 4, 16))


def test_hidden_states_are_counted_through_encoder_and_decoder(
    encoder: LDAEModel, denoiser: LDAEForPreTraining
) -> None:
    images, corruption = draw_images(), draw_corruption()
    assert encoder(images).hidden_states is None
    assert len(encoder(images, output_hidden_states=True).hidden_states) == 3
    whole = denoiser(images, *corruption, output_hidden_states=True).hidden_states
    assert len(whole) == 4
    trunk = denoiser.ldae(images, *corruption, output_hidden_states=True).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(whole, trunk, strict=True))
    tapped = []
    handles = [layer.register_forward_hook(lambda m, a, out: tapped.append(out)) for layer in denoiser.ldae.layers]
    denoiser(images, *corruption)
    for handle in handles:
        handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], tapped, strict=True))


@pytest.mark.parametrize(
    ("wanted", "given"), [([0], {0}), ([3], {3}), ([1, -1], {1, 3}), (2, {2}), (0, {0}), ((-4,), {0})]
)
def test_hidden_states_by_index(denoiser: LDAEForPreTraining, wanted: object, given: set[int]) -> None:
    images, corruption = draw_images(), draw_corruption()
    for model in (denoiser, denoiser.ldae):
        whole = model(images, *corruption, output_hidden_states=True).hidden_states
        some = model(images, *corruption, output_hidden_states=wanted).hidden_states
        assert {i for i, h in enumerate(some) if h is not None} == given
        assert len(some) == 4
        assert all(torch.equal(some[i], whole[i]) for i in given)
    with pytest.raises(ValueError, match=r"output_hidden_states=\[4\] is out of range; there are 4 hidden states"):
        denoiser(images, *corruption, output_hidden_states=[4])


def test_features_of_an_earlier_block(encoder: LDAEModel) -> None:
    early = LDAEModel(small_config(feature_layer=1)).eval()
    early.load_state_dict(encoder.state_dict())
    hidden = encoder(draw_images(), output_hidden_states=True).hidden_states
    ran = []
    handle = early.layers[1].register_forward_hook(lambda *args: ran.append(1))
    features = early(draw_images()).last_hidden_state
    assert not ran  # deeper blocks do not run
    assert torch.equal(features, encoder.normalize(hidden[1]))
    outputs = early(draw_images(), output_hidden_states=True)
    handle.remove()
    assert torch.equal(outputs.last_hidden_state, features)
    assert all(torch.equal(a, b) for a, b in zip(outputs.hidden_states, hidden, strict=True))


def test_a_classifier_reads_the_mean_token() -> None:
    model = open_gates(LDAEForImageClassification(small_config(num_labels=7)))
    outputs = model(draw_images(), labels=torch.tensor([0, 3, 6]))
    assert outputs.logits.shape == (3, 7)
    torch.testing.assert_close(outputs.logits, model.classifier(model.ldae(draw_images()).pooler_output))
    expected = nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 3, 6]))
    torch.testing.assert_close(outputs.loss, expected)
    assert not torch.equal(model(draw_images(), timesteps=torch.tensor([900])).logits, outputs.logits)


def test_a_backbone_maps_the_chosen_blocks() -> None:
    model = open_gates(LDAEBackbone(small_config(out_features=["stem", "stage1", "stage2"])))
    assert model.channels == [32, 32, 32]
    assert [m.shape for m in model(draw_images()).feature_maps] == [(3, 32, 4, 4)] * 3
    assert [m.shape for m in model(draw_images(height=24, width=8)).feature_maps] == [(3, 32, 6, 2)] * 3
    last = model.ldae(draw_images()).last_hidden_state  # (B, N, C)
    assert torch.equal(model(draw_images()).feature_maps[2].flatten(2).transpose(1, 2), last)
    assert model(draw_images()).hidden_states is None
    assert len(model(draw_images(), output_hidden_states=True).hidden_states) == 3


def test_tuples_on_request(denoiser: LDAEForPreTraining, encoder: LDAEModel) -> None:
    arguments = (draw_images(), *draw_corruption())
    loss, prediction, reconstruction = denoiser(*arguments, return_dict=False)
    outputs = denoiser(*arguments)
    assert torch.equal(loss, outputs.loss)
    assert torch.equal(prediction, outputs.prediction)
    assert torch.equal(reconstruction, outputs.reconstruction)
    assert torch.equal(encoder(draw_images(), return_dict=False)[1], encoder(draw_images()).pooler_output)


def test_copies_and_pickles_compute_the_same() -> None:
    denoiser = open_gates(LDAEForPreTraining(small_config()))
    arguments = (draw_images(), *draw_corruption())
    expected = denoiser(*arguments).loss
    for twin in (copy.deepcopy(denoiser), pickle.loads(pickle.dumps(denoiser))):
        assert torch.equal(twin(*arguments).loss, expected)
    config = pickle.loads(pickle.dumps(denoiser.config))
    assert isinstance(config, LDAEConfig)
    assert config.to_dict() == denoiser.config.to_dict()
