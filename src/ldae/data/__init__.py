"""Images for training and evaluation: opened, divided, shuffled, decoded, augmented, resumed."""

from ldae.sections import DataConfig

from .augment import prepare_images, prepare_latents
from .batch import Batch, describe_counts
from .decode import UnreadableImageError, decode_image
from .disjoint import check_disjoint, hash_images
from .geometry import augment_geometry
from .latents import cache_latents, open_latents
from .loader import ImageLoader
from .sources import ImageSource, list_splits, open_images, open_probe_images
from .stored_order import iterate_once
from .survey import ImageSurvey, survey_images


__all__ = [
    "Batch",
    "DataConfig",
    "ImageLoader",
    "ImageSource",
    "ImageSurvey",
    "UnreadableImageError",
    "augment_geometry",
    "cache_latents",
    "check_disjoint",
    "decode_image",
    "describe_counts",
    "hash_images",
    "iterate_once",
    "list_splits",
    "open_images",
    "open_latents",
    "open_probe_images",
    "prepare_images",
    "prepare_latents",
    "survey_images",
]
