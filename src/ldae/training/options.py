"""The `training:` and `tokenizer:` sections of a recipe."""

from dataclasses import dataclass, field


# What may change between two starts of one run, because no trained number depends on it.
FREE_FIELDS = frozenset(
    "output_dir images micro_batch_size num_workers log_every_images checkpoint_every_images keep_checkpoints "
    "probe_every_images probe_train_examples probe_eval_examples report_to push_to_hub hub_private cache_dir compile "
    "activation_checkpointing latent_cache select_features".split()
)


@dataclass
class TrainingConfig:
    """
    The `training:` section of a recipe. Lengths are in images seen, never in epochs or steps.

    Args:
        output_dir: The run's folder.
        images: Budget: images to see in all.
        total_batch_size: Images in an optimizer step, over all processes and accumulated micro-batches.
        micro_batch_size: Images in one forward on one device; `None` is the whole of its share.
        base_learning_rate: Peak learning rate for a total batch of 256; the peak is this times total_batch_size / 256
            (App. A: 1e-4).
        warmup_images: Images over which the learning rate rises linearly from 0; then it falls as a half-cycle cosine.
        weight_decay: Of AdamW (App. A: 0).
        adam_betas: Of AdamW. The paper does not give them; these are the customary ones of masked autoencoders.
        max_grad_norm: Gradients are clipped to this norm; the paper does not say whether it does.
        mixed_precision: `no` or `bf16` (autocast; weights, schedule and loss stay in float32).
        compile: Whether to compile the model (`torch.compile`, fullgraph).
        activation_checkpointing: Whether blocks are computed again in the backward pass, to save memory.
        ema_decay: Decay of an exponential moving average of the weights, which is then what is exported; `None` for
            none. The paper does not say whether it has one.
        latent_cache: Folder in which the latents of a convolutional VAE are kept, so that each image is encoded once and not
            once an epoch; filled before the first step where it is not there. Training from it is the same up to the
            rounding of what is stored. `None` encodes in every step.
        seed: Of initial weights, order of the data, augmentation, time steps and noise.
        log_every_images: Interval of lines in metrics.jsonl.
        checkpoint_every_images: Interval of checkpoints; `None` is a tenth of the budget.
        keep_checkpoints: How many checkpoints stay.
        probe_every_images: Interval of the online probe (kNN and ridge) where labels exist; `None` is a tenth of the
            budget, 0 is never.
        probe_train_examples, probe_eval_examples: Size of the fixed subset that the online probe sees.
        select_features: Whether the end of pre-training searches all blocks and time steps for the best features, on
            held-out images of that training subset, and writes the choice into config.json; `None` is where there are
            labels.
        report_to: Accelerate's trackers, by name: `tensorboard`, `trackio`, `wandb`, ...
        push_to_hub: Hub repository that receives the folder at checkpoints and at the end; `None` for none.
        hub_private: Whether a repository that has to be created is private.
    """

    output_dir: str | None = None
    images: int = 1_000_000
    total_batch_size: int = 256
    micro_batch_size: int | None = None
    base_learning_rate: float = 1e-4
    warmup_images: int = 0
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float | None = 1.0
    mixed_precision: str = "no"
    compile: bool = False
    activation_checkpointing: bool = False
    ema_decay: float | None = None
    latent_cache: str | None = None
    seed: int = 0
    log_every_images: int = 10_000
    checkpoint_every_images: int | None = None
    keep_checkpoints: int = 2
    probe_every_images: int | None = None
    probe_train_examples: int = 5_000
    probe_eval_examples: int = 1_000
    select_features: bool | None = None
    report_to: list[str] = field(default_factory=list)
    push_to_hub: str | None = None
    hub_private: bool = False

    def __post_init__(self) -> None:
        for name in ("images", "total_batch_size", "log_every_images", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not possible; it must be 1 or more.")
        for name in ("micro_batch_size", "checkpoint_every_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not possible; it must be 1 or more, or null.")
        for name in ("base_learning_rate", "warmup_images", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is not possible; it must be 0 or more.")
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision={self.mixed_precision!r} is unknown; choose no or bf16.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} is not possible; it must be between 0 and 1, or null.")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} is not possible; it must be positive, or null.")

    @property
    def steps(self) -> int:
        """Optimizer steps that the budget takes."""
        return -(-self.images // self.total_batch_size)

    def batch_layout(self, processes: int) -> tuple[int, int]:
        """
        Split the total batch.

        Returns:
            Micro-batch size and how many of them a process accumulates.

        Raises:
            ValueError: if the total batch does not divide.
        """
        share, rest = divmod(self.total_batch_size, processes)
        if rest or not share:
            raise ValueError(
                f"total_batch_size={self.total_batch_size} does not divide over {processes} processes; "
                f"give a multiple of {processes}."
            )
        micro = min(self.micro_batch_size or share, share)
        if share % micro:
            raise ValueError(
                f"micro_batch_size={micro} does not divide the {share} images of a process (total_batch_size="
                f"{self.total_batch_size} over {processes} processes); give a divisor of {share}."
            )
        return micro, share // micro


@dataclass
class TokenizerConfig:
    """
    The `tokenizer:` section of a recipe: where the latent tokenizer comes from. PCA and pixels are fitted in one pass;
    AE, VAE and the convolutional VAE are trained, by the same loop as the denoiser.

    Args:
        tokenizer: A fitted latent tokenizer: a `train_tokenizer` folder, a run, or for `conv_vae` a folder or Hub id of an
            `AutoencoderKL`; `None` fits or trains one first.
        tokenizer_images: Images that it is fitted on, or the budget in images seen of its training.
        tokenizer_batch_size: Images in an optimizer step of its training.
        tokenizer_learning_rate: Its peak learning rate, of Adam, as it stands (not per 256 images).
        tokenizer_warmup_images: Images over which that rises from 0; then it falls as a half-cycle cosine.
        kl_weight: Weight of a VAE's KL divergence beside the squared error, both summed over an image (Sec. 4.2 has 1; the
            autoencoders of latent diffusion 1e-6).
        perceptual_weight: Weight of the perceptual loss of a convolutional VAE (row 2 of the trajectory: 0).
        perceptual_model: Its network: folder or Hub id of a supervised backbone of transformers.
        adversarial_weight: Weight of the adversarial loss of a convolutional VAE, beside an adaptive factor (row 3: 0).
        adversarial_start_images: Images before the discriminator and the adversarial loss begin.
    """

    tokenizer: str | None = None
    tokenizer_images: int = 50_000
    tokenizer_batch_size: int = 64
    tokenizer_learning_rate: float = 1e-3
    tokenizer_warmup_images: int = 0
    kl_weight: float = 1e-6
    perceptual_weight: float = 0.0
    perceptual_model: str = "microsoft/resnet-50"
    adversarial_weight: float = 0.0
    adversarial_start_images: int = 0

    def __post_init__(self) -> None:
        for name in ("tokenizer_images", "tokenizer_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not possible; it must be 1 or more.")
        for name in (
            "tokenizer_learning_rate tokenizer_warmup_images kl_weight perceptual_weight adversarial_weight "
            "adversarial_start_images"
        ).split():
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is not possible; it must be 0 or more.")
