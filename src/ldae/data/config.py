"""The `data:` section of a recipe."""

from dataclasses import dataclass


@dataclass
class DataConfig:
    """
    Where the images come from and how they are read.

    Args:
        dataset (`str`): `"digits"` (embedded, no network), a Hub id, an image folder, a folder of parquet or webdataset
            files, or a glob of such files.
        dataset_config (`str`, *optional*): Configuration of a Hub data set that has several.
        split (`str`, defaults to `"train"`): Split that pre-training reads.
        eval_split (`str`, *optional*): Split that probes are scored on; by default `test`, else `validation` or `val`,
            else every tenth row of `split` (see [`open_probe_images`]).
        image_column (`str`, *optional*): Column of the images; found by its type where left out.
        label_column (`str`, *optional*): Column of the labels; found by its type where left out. A source without
            labels is fine wherever the method needs none.
        streaming (`bool`, defaults to `False`): Read shard after shard without preparing the data set on disk first.
        shuffle_window (`int`, defaults to 1024): When streaming, how many undecoded examples each worker holds and
            shuffles at a time.
        num_workers (`int`, defaults to 2): Worker processes of each process's loader; 0 decodes in the process itself.
        decode_size (`int`, *optional*, in pixels): Side to which images are resized and centre-cropped when decoded; the
            model's `image_size` where left out. Where it is given, random crops are cut from this square.
        random_resized_crop (`bool`, defaults to `False`): Crop a random box and resize it to `image_size`, antialiased.
            The box is drawn from the whole image, which need not be square, unless `decode_size` is given.
        crop_scale (`tuple[float, float]`, defaults to `(0.2, 1.0)`): Range of the box's share of the area.
        horizontal_flip (`bool`, defaults to `False`): Mirror half of the images.
        geometric_augmentation (`float`, defaults to 0): Probability of each of the transformations of EDM, which a DDAE with
            `augmentation_labels` is told of (see [`augment_geometry`]); 0 is none at all.
        cache_dir (`str`, *optional*): Where `datasets` keeps what it downloads and prepares.

    Raises:
        ValueError: Where a field is out of its range; the message names the field.

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
    shuffle_window: int = 1024
    num_workers: int = 2
    decode_size: int | None = None
    random_resized_crop: bool = False
    crop_scale: tuple[float, float] = (0.2, 1.0)
    horizontal_flip: bool = False
    geometric_augmentation: float = 0.0
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("dataset", "split"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"data.{name}={value!r}: give a name, for example data.dataset=digits")
        for name in ("streaming", "random_resized_crop", "horizontal_flip"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"data.{name}={getattr(self, name)!r}: must be true or false")
        for name, least in (("shuffle_window", 1), ("num_workers", 0), ("decode_size", 1)):
            value = getattr(self, name)
            if name == "decode_size" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"data.{name}={value!r}: must be an integer of at least {least}")
        try:
            low, high = (float(bound) for bound in self.crop_scale)
        except (TypeError, ValueError):
            low, high = 0.0, 0.0
        if not 0 < low <= high <= 1:
            raise ValueError(f"data.crop_scale={self.crop_scale!r}: must be two numbers with 0 < low <= high <= 1")
        p = self.geometric_augmentation
        if not isinstance(p, int | float) or isinstance(p, bool) or not 0 <= p <= 1:
            raise ValueError(f"data.geometric_augmentation={p!r}: must be a probability, from 0 to 1")
        self.crop_scale = (low, high)  # YAML gives a list

    @property
    def crops_whole_images(self) -> bool:
        """Whether random crops are cut from whole images while these are decoded."""
        return self.random_resized_crop and self.decode_size is None
