"""Images for probes: a whole source, for as many passes as they need, or a fixed subset of it."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ldae import stopping
from ldae.data import Batch, ImageSource, iterate_once
from ldae.data.augment import RandomCrop
from ldae.shared_work import gather_objects, share


KEPT_BYTES = 4 * 2**30  # decoded images of one source that are kept in memory between passes


class ImageSet:
    """A source that can be read several times: decoded once where all of it fits into memory, else anew for each pass.

    Args:
        source (`ImageSource`): What to read.
        image_size (`int`, in pixels): Side of the decoded images.
        num_channels (`int`, defaults to 3): 3 (RGB) or 1 (luminance).
        batch_size (`int`, defaults to 256): Images of a batch.
        num_workers (`int`, defaults to 0): Worker processes that decode.
        memory (`int`, defaults to 4 GiB): Bytes of decoded images that are kept between passes.
        crop ([`~ldae.data.augment.RandomCrop`], *optional*): Cuts a random box of each whole image, another one in
            each pass of other `skip_positions`. Nothing is kept then.

    Made within [`~ldae.shared_work.sharing_work`], it reads this process's share of the batches.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        image_size: int,
        num_channels: int = 3,
        batch_size: int = 256,
        num_workers: int = 0,
        memory: int = KEPT_BYTES,
        crop: RandomCrop | None = None,
    ) -> None:
        self.source, self.image_size, self.num_channels = source, image_size, num_channels
        self.batch_size, self.num_workers, self.memory, self.crop = batch_size, num_workers, memory, crop
        self.rank, self.world_size = share()
        self._kept: list[Batch] | None = None
        self._too_large = crop is not None

    def batches(self, mask: torch.Tensor | None = None, *, skip_positions: int = 0) -> Iterator[Batch]:
        """Read the images in one pass.

        Args:
            mask (`torch.BoolTensor`, *optional*): Which rows of the source.
            skip_positions (`int`, defaults to 0): Added to all positions, so that another pass draws other noise and
                augmentation.
        """
        for batch in self._all_batches(skip_positions):
            stopping.check()
            chosen = slice(None) if mask is None else mask[batch.positions]
            images = batch.images[chosen]
            if len(images):
                labels = None if batch.labels is None else batch.labels[chosen]
                yield Batch(images, batch.positions[chosen] + skip_positions, labels)

    def _all_batches(self, skip_positions: int) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept, size = [], 0
        for batch in iterate_once(
            self.source,
            image_size=self.image_size,
            num_channels=self.num_channels,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            whole_batches=True,
            num_workers=self.num_workers,
            crop=self.crop,
            skip_positions=skip_positions,
        ):
            if not self._too_large:
                kept.append(batch)
                size += batch.images.nbytes
                if size > self.memory:
                    self._too_large, kept = True, []
            yield batch
        if not self._too_large:
            self._kept = kept


def count_images(batches: Iterable[Batch]) -> int:
    """Count images, of all processes where they share the work."""
    return sum(gather_objects(sum(len(batch.images) for batch in batches)))


def fixed_subset(source: ImageSource, limit: int, seed: int) -> ImageSource:
    """Choose at most `limit` random rows of a source, the same for the same seed.

    Of a streamed source they are the first rows after a shuffle of its shards and within a window of `limit` rows: a
    stream that is sorted by class should have many shards.
    """
    split = f"{limit} rows of {source.split}"
    if source.streaming:
        shuffled = source.dataset.shuffle(seed=seed, buffer_size=limit).take(limit)
        return replace(source, dataset=shuffled, num_examples=None, split=split)
    n = len(source.dataset)
    if n <= limit:
        return source
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:limit].sort().values
    return replace(source, dataset=source.dataset.select(rows.tolist()), num_examples=limit, split=split)
