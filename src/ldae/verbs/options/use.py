"""Options of the verbs that use a checkpoint."""

from typing import Annotated, Literal

from pydantic import Field

from ldae.options import Positional, options

from .checkpoint import CheckpointOptions, JoinOptions, ReferenceOptions, SplitOptions


@options
class ExtractFeaturesOptions(JoinOptions, SplitOptions, CheckpointOptions):
    """Write the features of every image of a data set as a table of parquet files that `datasets` opens.

    Labels and other columns are kept. Several processes (accelerate launch) share the work. The same command goes on
    where it was stopped.

    Args:
        output_dir: Folder of the table, here or at an address such as s3://bucket/features.
        pool: Features of an image: their mean, or those of all places.
        dtype: Type of the stored features.
        columns: Other columns to keep, such as caption,url, or none; by default all plain ones.
        seed: Seed of the noise of --noisy.
        batch_size: Images in a forward.
        engine: accelerate, for the processes of this launch; or ray, for the actors of a Ray cluster (RAY_ADDRESS, or
            a new one on this machine), which may die, move and be replaced while the table is written.
        actors: Actors of a Ray cluster; by default one for each GPU, or as many as the cores allow.
        rows_per_shard: Rows of a file; by default it follows from their size, at most 8192.
        index: Build a FAISS index too.
        index_factory: The index in FAISS's words; the default compares by cosine.
        push_to_hub: Hub id of a data set that the table is uploaded to.
        private: Make a new repository private.
    """

    output_dir: str | None = None
    pool: Literal["mean", "none"] = "mean"
    dtype: Literal["float32", "float16"] = "float32"
    columns: list[str] | None = None
    seed: int = 0
    batch_size: int = Field(256, ge=1)
    engine: Literal["accelerate", "ray"] = "accelerate"
    actors: int | None = Field(None, ge=1)
    rows_per_shard: int | None = Field(None, ge=1)
    index: bool = False
    index_factory: str = "L2norm,Flat"
    push_to_hub: str | None = None
    private: bool = False


@options
class SearchOptions:
    """Find the images of a feature table that are nearest to an image, by the model that made the table.

    The table needs an index (extract_features --index). The scores of the images are printed, and the images are
    drawn if the data set can be found again.

    Args:
        folder: Folder of a feature table with an index.
        image: An image file.
        k: Number of images.
        column: The indexed column, if the table has several.
        checkpoint: The model, if it has moved.
        dataset: The images, if they have moved.
        device: Device such as cuda, cpu or mps; by default cuda where there is one.
        cache_dir: Folder in which the `datasets` library keeps the table as it reads it.
        output: File of the picture; by default pictures/search.png in the folder.
        config: YAML file of these options, by name; the command line wins.
    """

    folder: Annotated[str, Positional]
    image: Annotated[str, Positional]
    k: int = Field(5, ge=1)
    column: str | None = None
    checkpoint: str | None = None
    dataset: str | None = None
    device: str | None = None
    cache_dir: str | None = None
    output: str | None = None
    config: str | None = None


@options
class ScoreOptions:
    """Scores.

    Args:
        fid: Number of generated images whose Frechet distance to the data is measured; usually 50000.
        kid: Number of images for the kernel distance; the same as --fid if both are given.
        extractor: Network whose features are compared: a folder or Hub id of an image model, such as a classifier of
            this data set, or inception, which needs torch-fidelity.
        inception_weights: File of the weights of inception, if it cannot be downloaded.
        reference_split: Split that images are compared with; by default the split of pre-training.
        reference_images: Number of its first images that are used; by default all.
    """

    fid: int | None = Field(None, ge=2)
    kid: int | None = Field(None, ge=2)
    extractor: str = "inception"
    inception_weights: str | None = None
    reference_split: str | None = None
    reference_images: int | None = Field(None, ge=2)

    def __post_init__(self) -> None:
        if self.fid is not None and self.kid is not None and self.fid != self.kid:
            raise ValueError(f"fid={self.fid} and kid={self.kid} use the same images; give both the same number.")

    @property
    def num_scored(self) -> int:
        """Number of images that are generated for the scores; 0 for none."""
        return self.fid or self.kid or 0


@options
class GenerateOptions(ScoreOptions, ReferenceOptions, CheckpointOptions):
    """Generate images.

    A grid of them goes to pictures/samples.png (with --samplers, a row of each to pictures/samplers.png). With --fid
    or --kid, generated images are compared with those of the run's data, and the scores go to results.json. Each image
    depends on --seed and its number only: several processes (accelerate launch) share the work and find the same
    scores.

    Args:
        num_images: Images in the picture; by default 64, and with --samplers 10 of each, from the same noise.
        sampler: ddim, ancestral, or for a DDAE heun; by default heun for an EDM, else ddim.
        samplers: Samplers to compare, each with its steps, such as ddim:50,ancestral:1000,heun:18.
        steps: Steps of the sampler; by default 50 for ddim, 1000 for ancestral, 18 for heun, 1 for the constant
            schedule.
        eta: Without --sampler, 0 is deterministic (DDIM) and 1 ancestral.
        guidance_scale: Scale of classifier-free guidance; 1 turns it off.
        classes: Classes of a class-conditional model, such as 0,7; by default all, in turn.
        seed: Seed of the noise.
        batch_size: Images generated at once, in each process.
        mixed_precision: Precision of the network.
    """

    num_images: int | None = Field(None, ge=0)
    sampler: str | None = None
    samplers: list[str] | None = None
    steps: int | None = Field(None, ge=1)
    eta: float = 0.0
    guidance_scale: float = 1.0
    classes: list[int] | None = None
    seed: int = 0
    batch_size: int = Field(64, ge=1)
    mixed_precision: Literal["no", "bf16"] = "no"


@options
class DemoOptions:
    """Open a page to look at a checkpoint with.

    Drop a picture: clean, noisy and denoised at any t, patch features as colours, layers by time steps, the nearest
    images and near-duplicates of a set, samples; and a run's training, also while it goes on. Needs gradio (the extra
    `demo`).

    Args:
        checkpoint: A run's folder, any folder that save_pretrained wrote, or a Hub id.
        dataset: Images for examples and neighbours; by default those of the run's recipe.yaml, `none` for no images.
        dataset_config: Configuration of a Hub data set that has several.
        split: Split that is read.
        image_column: Column of the images; by default the one with the image type.
        label_column: Column of the labels; by default the one of the type class label.
        streaming: Read shard after shard, without preparing the data set on disk first.
        cache_dir: Folder in which the `datasets` library keeps what it downloads and prepares.
        device: Device such as cuda, cpu or mps; by default cuda where there is one.
        host: Address to listen on; by default 127.0.0.1. 0.0.0.0 lets other machines in.
        port: Port; by default the first free one from 7860.
        export_space: Folder to write a Space of the Hub to, without starting a page.
        config: YAML file of these options, by name; the command line wins.
    """

    checkpoint: Annotated[str, Positional]
    dataset: str | None = None
    dataset_config: str | None = None
    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    streaming: bool | None = None
    cache_dir: str | None = None
    device: str | None = None
    host: str | None = None
    port: int | None = Field(None, ge=0, le=65535)
    export_space: str | None = None
    config: str | None = None
