"""Images for training and evaluation: open, divide, shuffle, decode, augment, resume."""

from .augment import prepare_images
from .batch import Batch, describe_counts
from .config import DataConfig
from .decode import UnreadableImageError, decode_image
from .disjoint import check_disjoint, hash_images
from .loader import ImageLoader
from .one_pass import iterate_once
from .sources import ImageSource, list_splits, open_images, open_probe_images


__all__ = [
    "Batch",
    "DataConfig",
    "ImageLoader",
    "ImageSource",
    "UnreadableImageError",
    "check_disjoint",
    "decode_image",
    "describe_counts",
    "hash_images",
    "iterate_once",
    "list_splits",
    "open_images",
    "open_probe_images",
    "prepare_images",
]
