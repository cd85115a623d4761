"""The sections `data`, `tokenizer`, `training`, `finetuning` and `classifier` of recipes and presets."""

from dataclasses import field
from typing import Literal

from pydantic import Field

from ldae.options import options


# Fields that may change between two starts of one run, because no trained number depends on them.
FREE_FIELDS = frozenset(
    "output_dir images micro_batch_size num_workers log_every_images checkpoint_every_images keep_checkpoints "
    "probe_every_images probe_train_examples probe_eval_examples report_to push_to_hub hub_private cache_dir compile "
    "activation_checkpointing latent_cache select_features".split()
)
LARGEST_BATCH = 2**20  # images; a step's positions are listed, which takes minutes for billions


@options
class DataConfig:
    """The `data:` section: where the images come from and how they are read.

    Args:
        dataset: `digits` (embedded, no network), a Hub id, a folder of images, a folder of parquet or webdataset
            files, or a glob of such files, also behind an address (`s3://`, `gs://`, `hf://`, `https://`).
        dataset_config: Configuration of a Hub data set that has several.
        split: Split that training reads.
        eval_split: Split that probes are scored on; by default `test`, else `validation` or `val`, else every tenth
            row of `split`.
        image_column: Column of the images; by default the one with the image type.
        label_column: Column of the labels; by default the one with the class label type. Only methods that use labels
            need them.
        streaming: Read shard after shard, without preparing the data set on disk first.
        shuffle_window: When streaming, how many undecoded examples each worker holds and shuffles at a time.
        num_workers: Worker processes of each process's loader; 0 decodes in the process itself.
        decode_size: Side in pixels to which images are resized and centre-cropped when they are decoded; by default
            the model's `image_size`. If it is given, random crops are cut from this square.
        reduced_decoding: Decode a JPEG file at a half, a quarter or an eighth of its size if that is at least three
            times the size needed: about three times faster for photographs, and equal to within a grey level.
        random_resized_crop: Crop a random box and resize it to `image_size`, antialiased. The box is drawn from the
            whole image, which need not be square, unless `decode_size` is given.
        crop_scale: Smallest and largest share of the image's area in the box.
        horizontal_flip: Mirror half of the images.
        geometric_augmentation: Probability of each of EDM's geometric transformations, which a DDAE with
            `augmentation_labels` is conditioned on; 0 turns them off.
        cache_dir: Folder in which the `datasets` library keeps what it downloads and prepares.

    Raises:
        ValueError: If a field is out of its range; the message names it.

    Example:
    ```python
    >>> from ldae.data import DataConfig
    >>> DataConfig("digits", crop_scale=[0.5, 1]).crop_scale
    (0.5, 1.0)

    ```
    """

    dataset: str
    dataset_config: str | None = None
    split: str = "train"
    eval_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    streaming: bool = False
    shuffle_window: int = Field(1024, ge=1)
    num_workers: int = Field(2, ge=0, le=1024)
    decode_size: int | None = Field(None, ge=1)
    reduced_decoding: bool = True
    random_resized_crop: bool = False
    crop_scale: tuple[float, float] = (0.2, 1.0)
    horizontal_flip: bool = False
    geometric_augmentation: float = Field(0.0, ge=0, le=1)
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("dataset", "split"):
            if not getattr(self, name):
                raise ValueError(f"{name}='' is empty; give a name, such as {name}=digits.")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={self.crop_scale} must be two numbers with 0 < low <= high <= 1.")

    @property
    def crops_whole_images(self) -> bool:
        """True if random crops are cut from whole images while these are decoded."""
        return self.random_resized_crop and self.decode_size is None

    @property
    def chosen_labels(self) -> dict[str, str]:
        """Entry of an accuracy's protocol that tells coarse from fine labels: their column, if it was chosen."""
        return {"label_column": self.label_column} if self.label_column else {}


@options
class TokenizerConfig:
    """The `tokenizer:` section: where the latent tokenizer comes from.

    PCA and pixels are fitted in one pass; AE, VAE and the convolutional VAE are trained by the same loop as the
    denoiser.

    Args:
        tokenizer: A fitted latent tokenizer: a `train_tokenizer` folder, a run, or for `conv_vae` a folder or Hub id
            of an `AutoencoderKL`; by default one is fitted or trained first.
        tokenizer_images: Images that it is fitted on, or the budget of its training in images seen.
        tokenizer_batch_size: Images in an optimizer step of its training.
        tokenizer_learning_rate: Peak learning rate of its training with Adam, not scaled by the batch.
        tokenizer_warmup_images: Images over which the rate rises from 0; then it falls as a half-cycle cosine.
        kl_weight: Weight of a VAE's KL divergence relative to the squared error, both summed over an image (1 in
            Sec. 4.2, 1e-6 in the autoencoders of latent diffusion).
        perceptual_weight: Weight of the perceptual loss of a convolutional VAE (row 2 of the trajectory turns it off).
        perceptual_model: Network of that loss: folder or Hub id of a supervised transformers backbone.
        adversarial_weight: Weight of the adversarial loss of a convolutional VAE, times an adaptive factor (row 3
            turns it off).
        adversarial_start_images: Images seen before the discriminator and the adversarial loss begin.
    """

    tokenizer: str | None = None
    tokenizer_images: int = Field(50_000, ge=1)
    tokenizer_batch_size: int = Field(64, ge=1)
    tokenizer_learning_rate: float = Field(1e-3, ge=0)
    tokenizer_warmup_images: int = Field(0, ge=0)
    kl_weight: float = Field(1e-6, ge=0)
    perceptual_weight: float = Field(0.0, ge=0)
    perceptual_model: str = "microsoft/resnet-50"
    adversarial_weight: float = Field(0.0, ge=0)
    adversarial_start_images: int = Field(0, ge=0)


@options
class TrainingConfig:
    """The `training:` section. Lengths are in images seen, never in epochs or steps.

    Args:
        output_dir: The run's folder.
        images: Budget: total number of images to see.
        total_batch_size: Images in an optimizer step, over all processes and accumulated micro-batches.
        micro_batch_size: Images in one forward on one device; by default its whole share.
        base_learning_rate: Peak learning rate for a total batch of 256; the peak is this times total_batch_size / 256
            (App. A: 1e-4).
        warmup_images: Images over which the learning rate rises linearly from 0; then it falls as a half-cycle cosine.
        weight_decay: Weight decay of AdamW (App. A: 0).
        adam_betas: Betas of AdamW. The paper does not give them; these are the usual ones of masked autoencoders.
        max_grad_norm: Norm that gradients are clipped to; `null` does not clip. The paper does not mention clipping.
        mixed_precision: Precision of the forward pass; with `bf16`, weights, schedule and loss stay in float32.
        compile: Compile the model with `torch.compile`.
        activation_checkpointing: Compute the blocks' activations again in the backward pass, to save memory.
        ema_decay: Decay of an exponential moving average of the weights, which is then exported; `null` for none (the
            paper mentions none).
        latent_cache: Folder in which the latents of a convolutional VAE are kept, so that each image is encoded once
            and not in every epoch. It is filled before the first step. By default every step encodes.
        seed: Seed of initial weights, data order, augmentation, time steps and noise.
        log_every_images: Interval of lines in metrics.jsonl.
        checkpoint_every_images: Interval of checkpoints; by default a tenth of the budget.
        keep_checkpoints: Number of checkpoints to keep.
        probe_every_images: Interval of the online probe (kNN and ridge), if there are labels; by default a tenth of
            the budget, 0 for never.
        probe_train_examples: Training images of the online probe, a fixed subset.
        probe_eval_examples: Test images of the online probe, a fixed subset.
        select_features: End pre-training by a search of all blocks and time steps for the best features, and write the
            choice into config.json. Held-out images of the probe's training subset choose, or, where there are no
            labels, the effective rank of its features.
        report_to: Trackers of Accelerate: `tensorboard`, `trackio`, `wandb`, ...
        push_to_hub: Hub repository that receives the folder at checkpoints and at the end.
        hub_private: Make a new repository private.
    """

    output_dir: str | None = None
    images: int = Field(1_000_000, ge=1)
    total_batch_size: int = Field(256, ge=1, le=LARGEST_BATCH)
    micro_batch_size: int | None = Field(None, ge=1)
    base_learning_rate: float = Field(1e-4, ge=0)
    warmup_images: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float | None = Field(1.0, gt=0)
    mixed_precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    activation_checkpointing: bool = False
    ema_decay: float | None = Field(None, gt=0, lt=1)
    latent_cache: str | None = None
    seed: int = Field(0, ge=0, lt=2**32)
    log_every_images: int = Field(10_000, ge=1)
    checkpoint_every_images: int | None = Field(None, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    probe_every_images: int | None = Field(None, ge=0)
    probe_train_examples: int = Field(5_000, ge=1)
    probe_eval_examples: int = Field(1_000, ge=1)
    select_features: bool | None = True  # null, as recipes of earlier versions have it, means true
    report_to: list[str] = field(default_factory=list)
    push_to_hub: str | None = None
    hub_private: bool = False

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas={self.adam_betas} must be two numbers from 0 to below 1.")

    @property
    def steps(self) -> int:
        """Number of optimizer steps in the budget."""
        return -(-self.images // self.total_batch_size)

    def batch_layout(self, processes: int, option: str = "total_batch_size") -> tuple[int, int]:
        """Split the total batch over processes and micro-batches; `option` names it in errors.

        Returns:
            Micro-batch size, and how many micro-batches a process accumulates.

        Raises:
            ValueError: If the total batch does not divide.
        """
        share, rest = divmod(self.total_batch_size, processes)
        if rest or not share:
            raise ValueError(
                f"{option}={self.total_batch_size} does not divide over {processes} processes; "
                f"give a multiple of {processes}."
            )
        micro = min(self.micro_batch_size or share, share)
        if share % micro:
            raise ValueError(
                f"micro_batch_size={micro} does not divide the {share} images of a process ({option}="
                f"{self.total_batch_size} over {processes} processes); give a divisor of {share}."
            )
        return micro, share // micro


@options
class FineTuningConfig:
    """The `finetuning:` section. Defaults are those of the l-DAE paper (App. B).

    Args:
        checkpoint: The checkpoint to fine-tune: a folder or Hub id of an l-DAE, a DDAE, or a saved probe. A
            run's recipe.yaml has the path relative to the run's folder.
        from_scratch: Start from untrained weights, for comparison; the tokenizer or autoencoder stays.
        new_head: Replace the head of a saved probe or classifier.
        frozen_blocks: Number of first blocks that are not trained, together with the embeddings before them.
        lora_rank: Rank of LoRA factors that are trained instead of the encoder's weights; `null` trains the weights.
        layer_decay: Ratio of the learning rates of a block and the one after it; by default 0.85 (App. B for ViT-B;
            0.65 for ViT-L), and 1 with from_scratch or lora_rank.
        drop_path: Probability of dropping a residual branch of the last block; it rises linearly from 0 at the first.
        mixup: Parameter of MixUp's Beta distribution; 0 turns it off.
        cutmix: Parameter of CutMix's Beta distribution; 0 turns it off.
        rand_augment: Magnitude of RandAugment, with a standard deviation of 0.5; `null` turns it off.
        label_smoothing: Share of the target that is spread over all classes.
    """

    checkpoint: str
    from_scratch: bool = False
    new_head: bool = False
    frozen_blocks: int = Field(0, ge=0)
    lora_rank: int | None = Field(None, ge=1)
    layer_decay: float | None = Field(None, gt=0, le=1)
    drop_path: float = Field(0.1, ge=0, lt=1)
    mixup: float = Field(0.8, ge=0)
    cutmix: float = Field(1.0, ge=0)
    rand_augment: float | None = Field(9.0, ge=0, le=10)
    label_smoothing: float = Field(0.1, ge=0, lt=1)

    def __post_init__(self) -> None:
        if self.layer_decay is None:
            self.layer_decay = 1.0 if self.from_scratch or self.lora_rank else 0.85
        for name in ("frozen_blocks", "lora_rank"):
            if self.from_scratch and getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} does not go with from_scratch=true: weights that do not train have "
                    "to be trained already. Leave one of them out."
                )


@options
class ResNetClassifierConfig:
    """The `classifier:` section: a ResNet of transformers and its training, by AdamW with a half-cycle cosine.

    Args:
        images: Budget in images seen.
        total_batch_size: Images in an optimizer step.
        learning_rate: Peak learning rate, not scaled by the batch.
        weight_decay: Weight decay of AdamW.
        hidden_sizes: Widths of the stages; every stage except the first halves the map.
        depths: Basic blocks in each stage.
        embedding_size: Width of the first convolution, which with its pooling reduces each side to a quarter.
        horizontal_flip: Mirror half of the images; turn off for digits.
    """

    images: int = Field(50_000, ge=1)
    total_batch_size: int = Field(64, ge=1, le=LARGEST_BATCH)
    learning_rate: float = Field(1e-3, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    hidden_sizes: list[int] = field(default_factory=lambda: [32, 64, 128])
    depths: list[int] = field(default_factory=lambda: [1, 1, 1])
    embedding_size: int = Field(32, ge=1)
    horizontal_flip: bool = False
