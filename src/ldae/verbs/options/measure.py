"""Options of the verbs that measure a checkpoint."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from ldae.options import Positional, options

from .checkpoint import CheckpointOptions, FeatureOptions, ImageOptions, JoinOptions
from .use import ScoreOptions


Metric = Literal["few_shot", "ridge", "logistic", "knn", "linear", "retrieval", "robustness"]
SweepProbe = Literal["ridge", "knn", "linear", "none"]


@options
class MemoryOptions:
    """Memory.

    Args:
        forward_batch_size: Images in a forward.
        feature_memory: Memory in GiB that the features of either split, and its decoded images, may each take. Beyond
            it, features go into a temporary file (in TMPDIR), and images are decoded again for each pass.
    """

    forward_batch_size: int = Field(256, ge=1)
    feature_memory: float = Field(4.0, ge=0)


@options
class TableOptions:
    """Precomputed features.

    Args:
        features: Feature tables in place of images, so that features are computed once for all probes: the folders
            that extract_features wrote for the training images and for the test images, or one, of whose rows every
            tenth is then held out.
    """

    features: list[str] | None = None


@options
class LinearProbeOptions(TableOptions, MemoryOptions, JoinOptions, ImageOptions, CheckpointOptions):
    """Linear-probe a checkpoint.

    A linear layer on standardised, mean-pooled features of the frozen encoder is trained by Adam as in the papers, or
    solved to convergence. Blocks, time steps, learning rates and penalties are chosen on a tenth of the training
    images, never on the test set. Results go to results.json; the chosen probe is saved as an image classifier in
    linear_probe/.

    Args:
        protocol: paper: features under random crop and flip, computed anew in each epoch and probed by Adam, with a
            converged logistic probe of features computed once beside it; cached: features computed once.
        probe: Probe of --protocol cached and of --baselines. logistic: logistic regression solved to convergence;
            adam: as the papers train it, which may not have converged; ridge: closed form. By default logistic, and
            adam with --protocol paper.
        epochs: Passes of Adam over the training features; by default 90, and 15 for a DDAE.
        batch_size: Images in a step of Adam; by default 16384 (fewer for small data sets), and 128 for a DDAE.
        lr_multipliers: Learning rates of Adam, times 1e-4 x batch / 256; by default 1,10,100, and 20 for a DDAE, which
            is 1e-3. Several are extended until the chosen ones lie inside.
        seeds: Seeds of Adam's probes; by default 0,1,2.
        crop_scale: Smallest and largest share of the area kept by an l-DAE's random crops.
        baselines: Compare with the untrained network, raw pixels and mean PCA coefficients, on features computed once,
            instead of the protocol.
        shots: Compare the encoder and these baselines by ridge probes of this many labels a class, all on the same
            draws, instead of the usual probe.
        draws: Number of draws of --shots.
        horizontal_flip: Mirror images; false for digits and letters.
        batch_norm: Put a BatchNorm without parameters in front of the linear layer; DDAE's public code has none.
    """

    protocol: Literal["paper", "cached"] = "paper"
    probe: Literal["logistic", "adam", "ridge"] | None = None
    epochs: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    lr_multipliers: list[float] | None = None
    seeds: list[int] | None = None
    crop_scale: tuple[float, float] = (0.08, 1.0)
    baselines: bool = False
    shots: int | None = Field(None, ge=2)
    draws: int = Field(20, ge=1)
    horizontal_flip: bool = True
    batch_norm: bool = True


@options
class GridSearchOptions(TableOptions, MemoryOptions, FeatureOptions, ImageOptions, CheckpointOptions):
    """Score every block at time steps over the whole schedule, and make the best the checkpoint's default.

    The choice is written into config.json. A held-out tenth of the training images chooses; the test set is only
    reported. Without labels, give --criterion.

    Args:
        layers: Blocks, counted from 1, such as 9,10,11, or taps of a DDAE; by default all blocks.
        timesteps: Time steps, such as 0,10,20,40,80; by default nine over the whole schedule.
        noisy: Corrupt the input at t: false, true or both.
        protocol: cached: features computed once; paper: under random crop and flip, anew in each epoch.
        probe: ridge: closed form, in seconds; logistic: solved to convergence, in minutes; adam: trained for some
            epochs. By default ridge, and adam with --protocol paper.
        criterion: accuracy of the probes, or a criterion that needs no labels; by default accuracy.
        epochs: Passes of Adam over the training features; by default 15.
        batch_size: Images in a step of Adam; by default 128.
        learning_rates: Peak learning rates of Adam, of which each cell takes its best; by default 1e-3,1e-2,1e-1, and
            1e-3 for a DDAE's paper protocol.
        seeds: Seeds of Adam's probes; by default 0.
        horizontal_flip: Mirror images too, not for digits and letters; by default true with --protocol paper, else
            false.
        batch_norm: Put a BatchNorm without parameters in front of the linear layer; DDAE's public code has none.
        write_config: Write the best block and time step into config.json.
    """

    noisy: Literal["false", "true", "both"] = "false"  # type: ignore[assignment]
    protocol: Literal["cached", "paper"] = "cached"
    probe: Literal["ridge", "logistic", "adam"] | None = None
    criterion: Literal["accuracy", "rankme", "alignment", "uniformity", "alignment_uniformity"] | None = None
    epochs: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    learning_rates: list[float] | None = None
    seeds: list[int] | None = None
    horizontal_flip: bool | None = None
    batch_norm: bool = True
    write_config: bool = True


@options
class KnnOptions(TableOptions, JoinOptions, ImageOptions, CheckpointOptions):
    """Classify test images by their nearest training images in feature space.

    Similarity is the cosine, and votes are weighted by exp(similarity / temperature). Nothing is trained and nothing
    chosen: each block and time step has its row.

    Args:
        k: Number of neighbours that vote.
        temperature: Temperature of the votes.
        whiten: Principal components of the training images' features, each scaled to variance 1, that are compared;
            by default the features as they are. 64 or 128 often help.
        forward_batch_size: Images in a forward.
    """

    k: int = Field(20, ge=1)
    temperature: float = Field(0.07, gt=0)
    whiten: int | None = Field(None, ge=1)
    forward_batch_size: int = Field(256, ge=1)


@options
class CompareOptions(ImageOptions):
    """Measure several frozen encoders on one data set by the same probes, and print one table.

    Each has images of its own size. Encoders are l-DAEs, DDAEs (at their own block and time step), and any vision
    model of AutoModel with its image processor: ViTMAE, DINOv2, I-JEPA, a ResNet.

    Args:
        checkpoints: Folders or Hub ids.
        config: YAML file of these options, by name; the command line wins.
        max_train: Largest number of training images; the same ones are drawn each time.
        max_test: Largest number of test images.
        metrics: Columns: few_shot; ridge and logistic, of all labels; knn; linear, by Adam, which may not have
            converged; retrieval; robustness.
        shots: Labels a class of few_shot.
        draws: Number of draws of few_shot.
        k: Number of neighbours that vote in knn.
        whiten: Principal components, each scaled to variance 1, that knn and retrieval compare; by default the
            features as they are.
        epochs: Passes of linear over the features.
        seeds: Seeds of linear.
        sigmas: Standard deviations of the noise of robustness, on pixels in [-1, 1].
        untrained: Measure untrained twins too.
        raw_pixels: Measure raw pixels too.
        forward_batch_size: Images in a forward.
        mixed_precision: Precision of the forward pass.
        device: Device such as cuda, cpu or mps; by default cuda where there is one.
        output_dir: Folder for results.json and comparison.md; by default they are only printed.
    """

    checkpoints: Annotated[list[str], Positional, Field(min_length=1)] = Field(default_factory=list)
    config: str | None = None
    max_train: int | None = Field(None, ge=1)
    max_test: int | None = Field(None, ge=1)
    metrics: list[Metric] = field(default_factory=lambda: ["few_shot", "knn", "retrieval"])
    shots: int = Field(5, ge=2)
    draws: int = Field(20, ge=1)
    k: int = Field(20, ge=1)
    whiten: int | None = Field(None, ge=1)
    epochs: int = Field(90, ge=1)
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2])
    sigmas: list[float] = Field(default_factory=lambda: [0.05, 0.1, 0.2, 0.4, 0.8])
    untrained: bool = False
    raw_pixels: bool = True
    forward_batch_size: int = Field(256, ge=1)
    mixed_precision: Literal["no", "bf16"] = "no"
    device: str | None = None
    output_dir: str | None = None


@options
class AlignmentOptions(ImageOptions, CheckpointOptions):
    """Measure alignment and uniformity (Wang & Isola 2020) of an l-DAE's or a DDAE's features.

    Alignment is how far apart two noisings of an image lie on the unit sphere, uniformity how evenly different images
    are spread over it. Lower is better in both. No labels are used.

    Args:
        layers: Blocks, counted from 1, or taps of a DDAE; by default the end of every block.
        timesteps: Time steps; by default the model's, and 5, 10, 20, 40 and 80 % of all.
        checkpoints: Measure every checkpoint that the run kept, against images seen.
        centred: Subtract the mean feature first, as probes do; the papers' definition does not.
        num_images: Largest number of images of the test split.
        seeds: Seeds of the two noisings.
        chunk_size: Images whose distances are held at a time.
        forward_batch_size: Images in a forward.
        mixed_precision: Precision of the forward pass.
    """

    layers: list[int | str] | None = None
    timesteps: list[int] | None = None
    checkpoints: bool = False
    centred: bool = False
    num_images: int = Field(10_000, ge=2)
    seeds: tuple[int, int] = (0, 1)
    chunk_size: int = Field(2048, ge=1)
    forward_batch_size: int = Field(256, ge=1)
    mixed_precision: Literal["no", "bf16"] = "no"

    def __post_init__(self) -> None:
        if self.seeds[0] == self.seeds[1]:
            raise ValueError(f"seeds={self.seeds} must be two different numbers, such as 0,1.")


@options
class NoiseClassificationOptions(ImageOptions, CheckpointOptions):
    """Classify noisy images at each noise level, by frozen features and by networks that are trained.

    A linear head for each level on the frozen features of an l-DAE or a DDAE is compared with the same network, cut
    after the same block and told the level, trained from scratch on all levels.

    Args:
        layers: The block, counted from 1, or the tap of a DDAE; by default the model's.
        timesteps: Noise levels; by default 1, 5, 10, 20, 30, 40, 50, 60 and 80 % of all.
        images: Images that each network and each head sees.
        finetune: Fine-tune the network too.
        seeds: Seeds of heads, networks and noise in training.
        draws: Noisings of an image that heads see.
        batch_size: Images in a step.
        head_learning_rates: Learning rates of the heads, of which each level takes its best.
        learning_rate: Peak learning rate of the networks.
        horizontal_flip: Mirror images in training; by default as the recipe.
        forward_batch_size: Images in a forward.
        mixed_precision: Precision of all forward passes.
        dry_run: Take the first steps of each network, print what all of them take, and write nothing.
    """

    layers: list[int | str] | None = None
    timesteps: list[int] | None = None
    images: int = Field(50_000, ge=1)
    finetune: bool = False
    seeds: list[int] = Field(default_factory=lambda: [0])
    draws: int = Field(4, ge=1)
    batch_size: int = Field(64, ge=1)
    head_learning_rates: list[float] = Field(default_factory=lambda: [1e-3, 1e-2, 1e-1])
    learning_rate: float = Field(1e-3, gt=0)
    horizontal_flip: bool | None = None
    forward_batch_size: int = Field(256, ge=1)
    mixed_precision: Literal["no", "bf16"] = "no"
    dry_run: bool = False


@options
class CheckpointSweepOptions(ScoreOptions, MemoryOptions, ImageOptions, CheckpointOptions):
    """Probe every checkpoint that a run kept (--keep_checkpoints).

    With --fid or --kid, compare what it generates with real images. Results are a table, pictures/checkpoint_sweep.png
    and results.json. Averaged weights are used if the run averages. The best checkpoint by accuracy is chosen on
    held-out training images, never on the test set. The same command measures only what is not yet in results.json.

    Args:
        layers: One block, counted from 1, or tap of a DDAE; by default the model's.
        timesteps: One time step; by default the model's.
        probes: ridge, knn and linear; or none.
        epochs: Passes of the linear probe.
        seeds: Seeds of the linear probe.
        horizontal_flip: Mirror images for the linear probe; false for digits.
        mixed_precision: Precision of the forward pass.
        sampler: Sampler of generated images; by default heun for an EDM, else ddim.
        steps: Steps of the sampler; by default as in ldae generate.
        seed: Seed of the noise that images are generated from.
        batch_size: Images generated at once.
    """

    layers: list[int | str] | None = None
    timesteps: list[int] | None = None
    probes: list[SweepProbe] = field(default_factory=lambda: ["ridge", "knn"])
    epochs: int = Field(15, ge=1)
    seeds: list[int] = Field(default_factory=lambda: [0])
    horizontal_flip: bool = True
    mixed_precision: Literal["no", "bf16"] = "no"
    sampler: str | None = None
    steps: int | None = Field(None, ge=1)
    seed: int = 0
    batch_size: int = Field(64, ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "none" in self.probes and len(self.probes) > 1:
            raise ValueError(f"probes={self.probes} must be one or more of ridge, knn, linear; or none.")
