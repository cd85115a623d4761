"""The data set `digits`: 1,797 real images that scikit-learn ships, for runs without a download."""

import io
from functools import lru_cache

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage


SPLITS = {"train": slice(0, 1437), "test": slice(1437, 1797)}


@lru_cache  # a run opens the data set several times
def load_digits(split: str) -> Dataset:
    """Load the digits as 16x16 RGB images.

    Grey values 0..16 are scaled to 0..255 and rounded, the 8x8 pixels are resized to 16x16 (bicubic), and the three
    channels are equal. (With repeated pixels, 4x4 patches would vary in four of their 48 directions only.)

    Args:
        split (`str`): `"train"` (the first 1,437 images in scikit-learn's order) or `"test"` (the last 360).

    Returns:
        `datasets.Dataset` with the columns `image` (PNG bytes) and `label` (10 classes).
    """
    from sklearn.datasets import load_digits as load_sklearn_digits

    bunch = load_sklearn_digits()
    grey = np.rint(bunch.images[SPLITS[split]] * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    records = []
    for image in grey:
        file = io.BytesIO()
        enlarged = PILImage.fromarray(image).resize((16, 16), PILImage.Resampling.BICUBIC)
        enlarged.convert("RGB").save(file, "PNG", compress_level=1)
        records.append({"bytes": file.getvalue(), "path": None})
    features = Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in bunch.target_names])})
    labels = bunch.target[SPLITS[split]].tolist()
    return Dataset.from_dict({"image": records, "label": labels}, features=features)
