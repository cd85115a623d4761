"""Options that verbs share: the checkpoint, its images, and where its features are read."""

from typing import Annotated, Literal

from ldae.options import Positional, options


@options
class CheckpointOptions:
    """Checkpoint and results.

    Args:
        checkpoint: A run's folder, any folder that save_pretrained wrote, or a Hub id.
        config: YAML file of these options, by name; the command line wins.
        device: Device such as cuda, cpu or mps; by default cuda where there is one.
        output_dir: Folder for the results; by default the checkpoint's folder.
    """

    checkpoint: Annotated[str, Positional]
    config: str | None = None
    device: str | None = None
    output_dir: str | None = None


@options
class ReferenceOptions:
    """Images, by default those of the run's recipe.yaml.

    Args:
        dataset: `digits`, a Hub id, a folder of images, or a folder or glob of parquet or webdataset files.
        dataset_config: Configuration of a Hub data set that has several.
        image_column: Column of the images; by default the one with the image type.
        streaming: Read shard after shard, without preparing the data set on disk first.
        num_workers: Worker processes of the loader; 0 decodes in the process itself.
        cache_dir: Folder in which the `datasets` library keeps what it downloads and prepares.
    """

    dataset: str | None = None
    dataset_config: str | None = None
    image_column: str | None = None
    streaming: bool | None = None
    num_workers: int | None = None
    cache_dir: str | None = None


@options
class SplitOptions(ReferenceOptions):
    """Images, by default those of the run's recipe.yaml.

    Args:
        split: Split that is read.
        label_column: Column of the labels; by default the one of the type class label.
    """

    split: str | None = None
    label_column: str | None = None


@options
class ImageOptions(SplitOptions):
    """Images, by default those of the run's recipe.yaml.

    Args:
        split: Split of the training images.
        eval_split: Split that is scored; by default `test`, else `validation` or `val`, else every tenth training row.
        decode_size: Side in pixels to which images are resized and cropped when decoded; by default the model's size.
    """

    eval_split: str | None = None
    decode_size: int | None = None


@options
class FeatureOptions:
    """Features.

    Args:
        layers: Blocks, counted from 1, such as 9,10,11, or taps of a DDAE; by default the model's feature layer.
        block_sweep: Read every block of encoder and decoder.
        timesteps: Time steps, such as 0,10,20,40,80; by default the model's.
        noisy: Corrupt the input at t.
        mixed_precision: Precision of the forward pass.
    """

    layers: list[int | str] | None = None
    block_sweep: bool = False
    timesteps: list[int] | None = None
    noisy: bool = False
    mixed_precision: Literal["no", "bf16"] = "no"


@options
class JoinOptions(FeatureOptions):
    """Features.

    Args:
        join: Take the features of all layers and time steps together, one after the other, in place of each alone:
            --layers 3,4,5 --join. A linear probe of them is often several points better.
    """

    join: bool = False
