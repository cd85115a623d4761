"""Noise-conditional classification: accuracy at each noise level, of frozen features and of trained networks."""

from typing import Any

import torch
from transformers import PreTrainedModel

from ldae.data import prepare_images
from ldae.shared_work import failing_together, gather_objects, on_main

from .encoder import Layer, as_encoder, evaluating
from .features import centre_crop, extract_features
from .images import ImageSet
from .linear_probe import AdamProbes, ProbeSettings, train_adam_probes
from .metrics import accuracy
from .protocol import SPLIT_SEED, split_holdout


TEST_SEED = 2**20  # of the test images' noise: the same for everything that is compared, and used in no training
SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)


def default_noise_levels(num_train_timesteps: int) -> tuple[int, ...]:
    """Return the default time steps of a curve: 1, 5, 10, 20, 30, 40, 50, 60 and 80 % of the schedule.

    Example:
        >>> default_noise_levels(1000)
        (10, 50, 100, 200, 300, 400, 500, 600, 800)
    """
    return tuple(sorted({int(share * num_train_timesteps) for share in SHARES}))


def noise_to_signal(model: Any, timesteps: tuple[int, ...]) -> list[float]:
    """Compute sigma_t / gamma_t of an l-DAE's latents, or of a DDAE's clean inputs."""
    owner: Any = as_encoder(model).module
    corruption = owner.corruption if owner.corruption is not None else owner.denoiser.corruption
    steps = torch.tensor(timesteps, device=corruption.gammas.device)
    return (corruption.sigmas[steps] / corruption.gammas[steps]).tolist()


def probe_noise_levels(
    model: Any,
    train: ImageSet,
    test: ImageSet,
    *,
    layer: Layer,
    timesteps: tuple[int, ...],
    settings: ProbeSettings,
    draws: int = 4,
    horizontal_flip: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> AdamProbes:
    """Train a linear head for each noise level on a frozen encoder's features of noisy images, all at once.

    Each training image is noised `draws` times at each level; an epoch sees one of these noisings, the next the next.
    A tenth of the training images is held out, under noise of its own, and chooses each level's learning rate.

    Args:
        model (`PreTrainedModel`): An l-DAE or a DDAE, which is told the level.
        train ([`~ldae.evaluation.images.ImageSet`]): Training images with labels.
        test ([`~ldae.evaluation.images.ImageSet`]): Test images with labels, noised once at each level.
        layer (`int` or `str`): Block, counted from 1, or a DDAE's tap by name.
        timesteps (`tuple[int, ...]`): The levels.
        settings ([`ProbeSettings`]): How heads train.
        draws (`int`, defaults to 4): Noisings of a training image, which are all kept: n x draws x T x C x 4 bytes.
        horizontal_flip (`bool`, defaults to `False`): Whether a noisy training image is mirrored at random.
        device (`torch.device` or `str`, *optional*): Where to compute; by default where the model is.
        dtype (`torch.dtype`, *optional*): Autocast dtype for the features; by default no autocast.

    Returns:
        [`~ldae.evaluation.linear_probe.AdamProbes`], whose feature sets are the levels.

    Raises:
        ValueError: If labels are missing, or a block or time step does not exist.
    """
    if draws < 1:
        raise ValueError(f"draws={draws} must be 1 or more.")
    encoder = as_encoder(model)
    device = torch.device(device) if device is not None else encoder.device
    size = encoder.image_size

    def prepare(images: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return prepare_images(images, positions, SPLIT_SEED, image_size=size, horizontal_flip=horizontal_flip)

    def extract(images: ImageSet, mask: Any = None, skip: int = 0, seed: int = 0, plain: bool = False) -> Any:
        batches = images.batches(mask, skip_positions=skip)  # other positions draw other noise and flips
        return extract_features(
            encoder,
            batches,
            layers=[layer],
            timesteps=timesteps,
            noisy=True,
            seed=seed,
            device=device,
            dtype=dtype,
            prepare=centre_crop(size) if plain else prepare,
        )

    scored = extract(test, seed=TEST_SEED, plain=True)
    first = extract(train)
    labels, n = first.classes, len(first.classes)
    fitted, held = split_holdout(n)
    more = [extract(train, first.mask(fitted), skip=draw * n).flat for draw in range(1, draws)]  # (n, T, C) each
    choice = extract(train, first.mask(held), skip=draws * n, plain=True)

    def train_heads() -> AdamProbes:
        noisings = [first.flat[fitted], *more]
        return train_adam_probes(
            lambda epoch: noisings[epoch % draws],
            labels[fitted],
            (choice.flat, labels[held]),
            (scored.flat, scored.classes),
            num_classes=int(max(labels.max(), scored.classes.max())) + 1,
            settings=settings,
            device=device,
        )

    return on_main(train_heads)


def noisy_accuracy(
    classifier: PreTrainedModel,
    images: ImageSet,
    timesteps: tuple[int, ...],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> list[float]:
    """Score a noise-conditional classifier at each noise level, on the noisy images of [`probe_noise_levels`].

    Args:
        classifier (`PreTrainedModel`): An `LDAEForImageClassification` or a `DDAEForImageClassification`.
        images ([`~ldae.evaluation.images.ImageSet`]): Test images with labels.
        timesteps (`tuple[int, ...]`): The levels.
        device (`torch.device` or `str`, *optional*): Where to compute; by default where the classifier is.
        dtype (`torch.dtype`, *optional*): Autocast dtype; by default no autocast.

    Returns:
        `list[float]`: an accuracy between 0 and 1 for each level.
    """
    encoder: Any = classifier.base_model
    prepare = centre_crop(classifier.config.image_size)
    module: torch.nn.Module = classifier
    if device is not None:
        module.to(device)
    device = next(module.parameters()).device
    predictions, labels = [torch.zeros(len(timesteps), 0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    with (
        failing_together(),
        evaluating(classifier),
        torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
    ):
        for batch in images.batches():
            positions = batch.positions.to(device)
            pixels = prepare(batch.images.to(device), positions)
            noise = encoder.draw_noise(pixels, positions, TEST_SEED)
            logits = [classifier(pixels, timesteps=positions.new_tensor([t]), noise=noise).logits for t in timesteps]
            predictions.append(torch.stack(logits).argmax(dim=-1).cpu())  # (T, b)
            if batch.labels is not None:
                labels.append(batch.labels.cpu())
    shares = gather_objects((torch.cat(predictions, dim=1), torch.cat(labels)))
    truth = torch.cat([share[1] for share in shares])
    return [accuracy(prediction, truth) for prediction in torch.cat([share[0] for share in shares], dim=1)]
