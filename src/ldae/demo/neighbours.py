"""The nearest images of a set, by the cosine similarity of a model's features about their mean.

Features of all images share most of their length: without the set's mean taken off, every similarity is close to 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F

from ldae.data import Batch, ImageSource, iterate_once
from ldae.evaluation.features import extract_features


THUMBNAIL = 64  # side of the pictures that are kept of the searched images, in pixels
SHOWN = 128


@dataclass
class Neighbours:
    """
    The features of n images, and small pictures of them.

    Args:
        encoder (`PreTrainedModel`): [`LDAEModel`], [`LDAEForPreTraining`] or [`DDAEModel`].
        mean (`torch.FloatTensor` of shape `(F,)`): Of the features.
        features (`torch.FloatTensor` of shape `(n, F)`): Less the mean, and of length 1.
        thumbnails (`torch.ByteTensor` of shape `(n, C, s, s)`).
        captions (`list[str]`): The class of each image, or "" where it is unknown.
    """

    encoder: Any
    mean: torch.Tensor
    features: torch.Tensor
    thumbnails: torch.Tensor
    captions: list[str]

    @classmethod
    def of(
        cls, encoder: Any, source: ImageSource, limit: int, report: Callable[[float, str], None], batch_size: int = 64
    ) -> "Neighbours":
        """
        Compute the features of the first images of a source.

        Args:
            encoder: As above.
            source ([`~ldae.data.ImageSource`]): The images.
            limit (`int`): How many at most.
            report (`Callable`): Is told the share that is done, and what is done, after each batch.
            batch_size (`int`, defaults to 64): Images of a forward.
        """
        c = encoder.config
        total = limit if source.num_examples is None else min(limit, source.num_examples)
        thumbnails: list[torch.Tensor] = []

        def watched() -> Iterator[Batch]:
            size = {"image_size": c.image_size, "num_channels": c.num_channels}
            for batch in iterate_once(source, batch_size=batch_size, limit=limit, **size):
                done = sum(map(len, thumbnails))
                report(done / total, f"Features of {source.description}: {done:,} of {total:,} images, once")
                thumbnails.append(_shrink(batch.images))
                yield batch

        features = extract_features(encoder, watched())
        labels = [-1] * len(features.values) if features.labels is None else features.labels.tolist()
        names = source.class_names
        captions = ["" if k < 0 else names[k] if names else f"class {k}" for k in labels]
        values = features.flat[:, 0]  # (n, F)
        mean = values.mean(dim=0)
        return cls(encoder, mean, F.normalize(values - mean, dim=1), torch.cat(thumbnails), captions)

    def nearest(self, image: np.ndarray, count: int) -> list[tuple[PIL.Image.Image, str]]:
        """
        The most similar images, nearest first.

        Args:
            image (`np.ndarray` of shape `(C, S, S)`): uint8, at the model's size.
            count (`int`): How many at most.

        Returns:
            Pictures with captions: similarity, and class where it is known.
        """
        batch = Batch(torch.from_numpy(image)[None], torch.zeros(1, dtype=torch.long), None)
        feature = F.normalize(extract_features(self.encoder, [batch]).flat[0, 0] - self.mean, dim=0)  # (F,)
        found = (self.features @ feature).topk(min(count, len(self.features)))
        shown = []
        for similarity, index in zip(found.values.tolist(), found.indices.tolist(), strict=True):
            array = self.thumbnails[index].expand(3, -1, -1).permute(1, 2, 0).numpy()  # (s, s, 3)
            picture = PIL.Image.fromarray(np.ascontiguousarray(array))
            picture = picture.resize((SHOWN, SHOWN), PIL.Image.Resampling.NEAREST)
            shown.append((picture, " · ".join(filter(None, [f"{similarity:.2f}", self.captions[index]]))))
        return shown


def _shrink(images: torch.Tensor) -> torch.Tensor:
    """Images `(b, C, S, S)` in uint8, no larger than thumbnails."""
    if images.shape[-1] <= THUMBNAIL:
        return images
    small = F.interpolate(images.float(), size=(THUMBNAIL, THUMBNAIL), mode="area")
    return small.round().to(torch.uint8)
