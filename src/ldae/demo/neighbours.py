"""Nearest images, and pairs of images, by the cosine similarity of a model's features.

The features of all images have a large part in common and vary mostly along a few directions. Nearest images are found
by whitened features, among which no direction counts more than another; pairs, such as near-duplicates, by features
that are only centred, because whitening enlarges the small differences between copies.
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
from ldae.evaluation.knn import fit_directions
from ldae.reports.image_grids import sample_grid, to_picture


THUMBNAIL = 64  # side of the small pictures that are kept of the searched images, in pixels
SHOWN = 128
BATCH_SIZE = 64  # images in a forward pass
COMPONENTS = 64  # largest number of principal components that neighbours are found by
IMAGES_PER_COMPONENT = 4  # with fewer, whitening fits the noise of the features
ROWS_AT_ONCE = 512  # that are compared with all images at a time, which bounds memory


@dataclass
class Neighbours:
    """Features of n images, with small pictures of them.

    Args:
        model (`PreTrainedModel`): The model that computed the features.
        whiten (`Callable`): From features `(m, F)` to their whitened components `(m, c)`, scaled to length 1.
        whitened (`torch.FloatTensor` of shape `(n, c)`): Those of the images.
        features (`torch.FloatTensor` of shape `(n, F)`): Features minus their mean, scaled to length 1.
        thumbnails (`torch.ByteTensor` of shape `(n, C, s, s)`): Small pictures.
        captions (`list[str]`): Class of each image, or "" if it is unknown.
        positions (`list[int]`): Row of each image in the source.
    """

    model: Any
    whiten: Callable[[torch.Tensor], torch.Tensor]
    whitened: torch.Tensor
    features: torch.Tensor
    thumbnails: torch.Tensor
    captions: list[str]
    positions: list[int]

    @classmethod
    def compute(
        cls, model: Any, source: ImageSource, limit: int, report: Callable[[float, str], None]
    ) -> "Neighbours":
        """Compute the features of the first images of a source.

        Args:
            model (`PreTrainedModel`): An l-DAE or a DDAE.
            source ([`~ldae.data.ImageSource`]): The images.
            limit (`int`): Largest number of images.
            report (`Callable`): Called with the share that is done and the current step, before each batch.
        """
        c = model.config
        total = limit if source.num_examples is None else min(limit, source.num_examples)
        thumbnails: list[torch.Tensor] = []
        positions: list[int] = []

        def watched() -> Iterator[Batch]:
            size = {"image_size": c.image_size, "num_channels": c.num_channels}
            for batch in iterate_once(source, batch_size=BATCH_SIZE, limit=limit, **size):
                done = sum(map(len, thumbnails))
                report(done / total, f"Features of {source.description}: {done:,} of {total:,} images, once")
                thumbnails.append(_shrink(batch.images))
                positions.extend(batch.positions.tolist())
                yield batch

        features = extract_features(model, watched())
        labels = [-1] * len(features.values) if features.labels is None else features.labels.tolist()
        names = source.class_names
        captions = ["" if k < 0 else names[k] if names else f"class {k}" for k in labels]
        values = features.flat[:, 0]  # (n, F)
        components = max(1, min(COMPONENTS, len(values) // IMAGES_PER_COMPONENT))
        varied = bool((values != values[0]).any())  # a single image, or copies of one, have no components
        whiten = fit_directions(values, components if varied else None)
        centred = F.normalize(values - values.mean(dim=0), dim=1)
        return cls(model, whiten, whiten(values), centred, torch.cat(thumbnails), captions, positions)

    def nearest(self, image: np.ndarray, count: int = 8) -> list[tuple[PIL.Image.Image, str]]:
        """Find the most similar images, nearest first.

        Args:
            image (`np.ndarray` of shape `(C, S, S)`): The image, in uint8 at the model's size.
            count (`int`, defaults to 8): Largest number of neighbours.

        Returns:
            Pictures, each with its similarity and, if it is known, its class as a caption.
        """
        batch = Batch(torch.from_numpy(image)[None], torch.zeros(1, dtype=torch.long), None)
        query = self.whiten(extract_features(self.model, [batch]).flat[:, 0])[0]  # (c,)
        found = (self.whitened @ query).topk(min(count, len(self.features)))
        shown = []
        for similarity, index in zip(found.values.tolist(), found.indices.tolist(), strict=True):
            caption = " · ".join(filter(None, [f"{similarity:.2f}", self.captions[index]]))
            shown.append((to_picture(self.thumbnails[index], SHOWN), caption))
        return shown

    def closest_pairs(self, least: float, count: int = 24) -> tuple[list[tuple[PIL.Image.Image, str]], int]:
        """Find the pairs of images that are most similar to each other, such as near-duplicates.

        Args:
            least (`float`): Least similarity of a pair, from -1 to 1.
            count (`int`, defaults to 24): Largest number of pairs that are shown.

        Returns:
            Pictures of the closest pairs, most similar first, each with its similarity, rows and classes as a caption;
            and the number of all pairs that are at least so similar.
        """
        values, pairs, total = torch.empty(0), torch.empty(0, 2, dtype=torch.long), 0
        for start in range(0, len(self.features), ROWS_AT_ONCE):
            similarity = self.features[start : start + ROWS_AT_ONCE] @ self.features[start:].T  # (b, n - start)
            row, column = torch.where((similarity >= least).triu(1))  # each pair once, and no image with itself
            total += len(row)
            values = torch.cat([values, similarity[row, column]])
            pairs = torch.cat([pairs, torch.stack([row, column], dim=1) + start])  # (k, 2)
            best = values.topk(min(count, len(values))).indices
            values, pairs = values[best], pairs[best]
        shown = []
        for similarity, (first, second) in zip(values.tolist(), pairs.tolist(), strict=True):
            rows = f"{self.positions[first]}, {self.positions[second]}"
            classes = " and ".join(dict.fromkeys([self.captions[first], self.captions[second]]))
            caption = " · ".join(filter(None, [f"{similarity:.3f}", rows, classes]))
            shown.append((sample_grid(self.thumbnails[[first, second]], columns=2), caption))
        return shown, total


def _shrink(images: torch.Tensor) -> torch.Tensor:
    """Shrink images `(b, C, S, S)` in uint8 to thumbnails."""
    if images.shape[-1] <= THUMBNAIL:
        return images
    small = F.interpolate(images.float(), size=(THUMBNAIL, THUMBNAIL), mode="area")
    return small.round().to(torch.uint8)
