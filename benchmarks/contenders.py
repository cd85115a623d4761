"""Self-supervised methods to compare at equal compute: a small interface, and one loop that trains them all."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from ldae import DDAEConfig, DDAEForPreTraining, LDAEConfig, LDAEForPreTraining, fit_patch_pca
from ldae.data import Batch, prepare_images
from ldae.evaluation.encoder import evaluating
from ldae.evaluation.features import extract_features
from ldae.evaluation.untrained import untrained_like


PATCH, WIDTH, HEADS, ENCODER, DECODER = 4, 192, 3, 4, 2  # of training/recipes/ldae_mini_cifar10.yaml
LATENT_DIM, PCA_IMAGES = 16, 10_000
BATCH = 64
WARMUP = 0.05  # share of the budget
MAX_GRAD_NORM = 1.0

Column = tuple[Any, int | None]  # (block or tap, time step)


@dataclass(frozen=True)
class Images:
    """Decoded images `(n, 3, S, S)` in uint8 and their classes `(n,)`."""

    pixels: torch.Tensor
    labels: torch.Tensor

    @property
    def size(self) -> int:
        """Side of an image in pixels."""
        return self.pixels.shape[-1]

    def first(self, count: int) -> "Images":
        """Take the first `count` images."""
        return Images(self.pixels[:count], self.labels[:count])

    def batches(self, batch_size: int = 256) -> Iterator[Batch]:
        """Yield every image once, in order."""
        for index in torch.arange(len(self.labels)).split(batch_size):
            yield Batch(self.pixels[index], index, self.labels[index])


class Method(ABC):
    """A way to pre-train an encoder.

    Attributes:
        name (`str`): The method's name in tables.
        rate (`float`): Peak learning rate at batch 64.
        weight_decay (`float`): Weight decay of AdamW, for matrices only.
    """

    name: str
    rate: float
    weight_decay: float = 0.0
    model: Any

    @abstractmethod
    def build(self, images: Images, seed: int) -> None:
        """Build the network, and fit the parts of it that are fitted on the training images before training."""

    @abstractmethod
    def loss(self, images: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
        """Compute the loss `()` of pixels `(b, 3, S, S)` in [-1, 1] at their positions `(b,)` in the run."""

    @abstractmethod
    def columns(self) -> list[Column]:
        """List the (block, time step) pairs that a search chooses from, one after another for each block."""

    @abstractmethod
    def features(self, images: Images, columns: list[Column]) -> torch.Tensor:
        """Compute features `(n, F, C)` of all blocks and time steps named in `columns`, a full grid."""

    def reset(self, seed: int) -> None:
        """Replace the network by an untrained one, the baseline."""
        self.model = untrained_like(self.model, seed)


class _Denoiser(Method):
    """A denoiser with one feature for each block and time step."""

    timesteps: tuple[int, ...]
    noisy = False  # True if probes see corrupted inputs, as in training

    def loss(self, images: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
        timesteps, noise = self.model.draw_corruption(positions, seed)
        return self.model(images, timesteps, noise).loss

    def columns(self) -> list[Column]:
        return [(block, t) for block in self.blocks() for t in self.timesteps]

    def features(self, images: Images, columns: list[Column]) -> torch.Tensor:
        blocks, timesteps = (list(dict.fromkeys(values)) for values in zip(*columns, strict=True))
        options = {"layers": blocks, "timesteps": timesteps, "noisy": self.noisy}
        return extract_features(self.encoder(), images.batches(), **options).flat

    def blocks(self) -> list[Any]:
        raise NotImplementedError

    def encoder(self) -> Any:
        return self.model


class LDAE(_Denoiser):
    """l-DAE as in training/recipes/ldae_mini_cifar10.yaml: PCA latents, denoised by a transformer."""

    name, rate = "l-DAE", 1.5e-3
    timesteps = (0, 10, 20, 40, 80, 160, 320, 640, 999)

    def build(self, images: Images, seed: int) -> None:
        torch.manual_seed(seed)
        config = LDAEConfig(
            image_size=images.size,
            patch_size=PATCH,
            hidden_size=WIDTH,
            num_hidden_layers=ENCODER,
            decoder_num_hidden_layers=DECODER,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            latent_dim=LATENT_DIM,
            latent_scaling="per_dim",
        )
        self.model = LDAEForPreTraining(config)
        pixels = (batch.images.float() / 127.5 - 1 for batch in images.first(PCA_IMAGES).batches())
        pca = fit_patch_pca(pixels, patch_size=PATCH, latent_dim=LATENT_DIM, latent_scaling="per_dim")
        self.model.ldae.tokenizer.load_state_dict(pca.state_dict())

    def blocks(self) -> list[int]:
        return list(range(1, ENCODER + DECODER + 1))


class DDAE(_Denoiser):
    """DDAE (DDPM) with a DiT on pixels of equal width, depth and patch; probes see noisy images, as in the paper."""

    name, rate = "DDAE", 2e-3
    timesteps = (0, 10, 20, 40, 80, 160, 250)
    noisy = True

    def build(self, images: Images, seed: int) -> None:
        torch.manual_seed(seed)
        network = {
            "sample_size": images.size,
            "patch_size": PATCH,
            "in_channels": 3,
            "num_attention_heads": HEADS,
            "attention_head_dim": WIDTH // HEADS,
            "num_layers": ENCODER + DECODER,
            "num_embeds_ada_norm": 0,
        }
        config = DDAEConfig(denoiser_type="DiTTransformer2DModel", denoiser_config=network)
        self.model = DDAEForPreTraining(config)

    def blocks(self) -> list[str]:
        return list(self.model.ddae.feature_layers)

    def encoder(self) -> Any:
        return self.model.ddae


class MAE(Method):
    """transformers' masked autoencoder, with the recipe of its paper: three quarters masked, normalised patches."""

    name, rate, weight_decay = "ViTMAE", 1e-3, 0.05

    def build(self, images: Images, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = ViTMAEForPreTraining(
            ViTMAEConfig(
                image_size=images.size,
                patch_size=PATCH,
                hidden_size=WIDTH,
                num_hidden_layers=ENCODER,
                num_attention_heads=HEADS,
                intermediate_size=4 * WIDTH,
                decoder_hidden_size=WIDTH,
                decoder_num_hidden_layers=DECODER,
                decoder_num_attention_heads=HEADS,
                decoder_intermediate_size=4 * WIDTH,
                mask_ratio=0.75,
                norm_pix_loss=True,
            )
        )

    def reset(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = ViTMAEForPreTraining(self.model.config)

    def loss(self, images: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
        return self.model(images).loss

    def columns(self) -> list[Column]:
        return [(block, None) for block in range(1, ENCODER + 1)]

    def features(self, images: Images, columns: list[Column]) -> torch.Tensor:
        encoder, pieces = self.model.vit, []
        mask_ratio, encoder.config.mask_ratio = encoder.config.mask_ratio, 0.0  # probes see all patches
        order = torch.arange((images.size // PATCH) ** 2, dtype=torch.float32)  # in their order
        try:
            with evaluating(encoder):
                for batch in images.batches():
                    pixels = prepare_images(batch.images, batch.positions, 0, image_size=images.size)
                    noise = order.expand(len(pixels), -1)
                    hidden = encoder(pixels, noise=noise, output_hidden_states=True).hidden_states
                    blocks = [hidden[block][:, 1:] for block, _ in columns]  # (b, N, C), without the class token
                    normalized = [F.layer_norm(tokens, tokens.shape[-1:]) for tokens in blocks]
                    pieces.append(torch.stack([tokens.mean(dim=1) for tokens in normalized], dim=1))  # (b, F, C)
        finally:
            encoder.config.mask_ratio = mask_ratio
        return torch.cat(pieces)


METHODS: dict[str, type[Method]] = {method.name: method for method in (LDAE, DDAE, MAE)}


@dataclass(frozen=True)
class Trained:
    """The cost of a training: CPU seconds including the fit, images seen, and the mean loss of the last tenth."""

    cpu_seconds: float
    images_seen: int
    loss: float


class Training:
    """One training for a budget of CPU seconds of this process, a step at a time.

    The learning rate is a function of the used share of the budget, so each budget is a complete run. Only the time of
    building the network, of fitting before the first step, and of the steps counts.

    Args:
        method ([`Method`]): What to train; its network is built here.
        images ([`Images`]): Training images.
        seed (`int`): Seed of weights, order, flips, time steps and noise.
        cpu_seconds (`float`): The budget, of `time.process_time`.
    """

    def __init__(self, method: Method, images: Images, seed: int, cpu_seconds: float) -> None:
        start = time.process_time()
        self.method, self.images, self.seed, self.cpu_seconds = method, images, seed, cpu_seconds
        method.build(images, seed)
        method.model.train()
        self.weights = [weight for weight in method.model.parameters() if weight.requires_grad]
        groups = [
            {"params": [weight for weight in self.weights if weight.ndim > 1], "weight_decay": method.weight_decay},
            {"params": [weight for weight in self.weights if weight.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
        self.order = _order(len(images.labels), seed)
        self.losses: list[float] = []
        self.seen = 0
        self.spent = time.process_time() - start

    @property
    def used(self) -> float:
        """Share of the budget that is spent."""
        return self.spent / self.cpu_seconds

    def step(self) -> None:
        """Take one optimizer step."""
        start = time.process_time()
        index = next(self.order)
        for group in self.optimizer.param_groups:
            group["lr"] = self.method.rate * schedule(self.used)
        positions = torch.arange(self.seen, self.seen + len(index))
        size = self.images.size
        pixels = prepare_images(self.images.pixels[index], positions, self.seed, image_size=size, horizontal_flip=True)
        loss = self.method.loss(pixels, positions, self.seed)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seen += len(index)
        self.losses.append(loss.item())
        self.spent += time.process_time() - start

    def result(self) -> Trained:
        """Return what was spent and reached.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        last = self.losses[-max(1, len(self.losses) // 10) :]
        if not self.losses or not math.isfinite(sum(last)):
            raise FloatingPointError(
                f"{self.method.name}: no finite loss after {self.seen} images with rate={self.method.rate}; lower it "
                "(--rates), or raise --base_seconds."
            )
        return Trained(self.spent, self.seen, sum(last) / len(last))


def train_together(trainings: list[Training]) -> None:
    """Train several methods in turn, always the one that has spent least, to the end of their budgets.

    A second of CPU time does less on a machine that is busy. In turn, all methods meet the same machine.
    """
    while active := [training for training in trainings if training.used < 1]:
        min(active, key=lambda training: training.used).step()


def schedule(used: float) -> float:
    """Return the learning rate relative to its peak after a share `used` of the budget: linear warm-up, half a cosine.

    Example:
        >>> [round(schedule(used), 2) for used in (0, 0.025, 0.05, 0.525, 1)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if used < WARMUP:
        return used / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (used - WARMUP) / (1 - WARMUP)))


def _order(count: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield indices of full batches, epoch after epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(count, generator=generator).split(BATCH):
            if len(index) == BATCH or count < BATCH:
                yield index
