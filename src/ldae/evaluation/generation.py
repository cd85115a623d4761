"""Generate images to score; each depends only on a seed and its number, not on processes and batches."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ldae import stopping
from ldae.data import Batch, ImageSource, iterate_once
from ldae.pipelines.run_folder import RunFolderPipeline
from ldae.results import Result
from ldae.shared_work import gather_objects, share

from .distances import KID_SUBSETS, ImageDistances, ReferenceFeatures, image_distances, read_reference
from .extractor import FeatureExtractor


@dataclass(frozen=True)
class Sampling:
    """Settings of generation.

    Args:
        steps (`int`, *optional*): Steps of the chain; by default the pipeline's.
        eta (`float`, defaults to 0): 0 deterministic (DDIM), 1 ancestral (DDPM).
        sampler (`str`, *optional*): `"ddim"`, `"ancestral"`, or of a DDAE `"heun"`; by default the pipeline's, at
            `eta`.
        guidance_scale (`float`, defaults to 1): Of classifier-free guidance.
        classes (`tuple[int, ...]`, *optional*): The classes, taken in turn; by default all, where the model has any.
        seed (`int`, defaults to 0): The noise of an image depends on this and its number alone.
        batch_size (`int`, defaults to 64): Images generated at once by a process.
    """

    steps: int | None = None
    eta: float = 0.0
    sampler: str | None = None
    guidance_scale: float = 1.0
    classes: tuple[int, ...] | None = None
    seed: int = 0
    batch_size: int = 64

    def labels(self, positions: torch.Tensor, num_class_embeds: int | None) -> torch.Tensor | None:
        """Return the class of each image `(b,)` by its number, `None` for a model without classes.

        Raises:
            ValueError: If classes are given to such a model, or the tuple is empty.
        """
        classes = self.classes
        if classes is None:
            if num_class_embeds is None:
                return None
            classes = tuple(range(num_class_embeds))
        elif num_class_embeds is None or not classes:
            reason = "is empty" if not classes else "needs a class-conditional model, and this one has no classes"
            raise ValueError(f"classes={','.join(map(str, classes))} {reason}; leave it out.")
        return torch.tensor(classes)[positions % len(classes)]


def image_generator(seed: int, position: int) -> torch.Generator:
    """Make the generator of one image from the run's seed and the image's number.

    A CPU generator keeps 32 bits of its seed. They count up from a hash of the run's seed: no two images share one.
    """
    start = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "big")
    return torch.Generator().manual_seed((start + position) % 2**32)


def generate_images(
    pipeline: RunFolderPipeline, num_images: int, sampling: Sampling, *, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Generate this process's share of images, the numbers i with i % world_size == rank, batch after batch.

    Args:
        pipeline ([`LDAEPipeline`] or [`DDAEPipeline`]): The pipeline that generates them.
        num_images (`int`): Number of images over all processes.
        sampling ([`Sampling`]): Settings of generation.
        rank (`int`, defaults to 0): Index of this process.
        world_size (`int`, defaults to 1): Number of processes.

    Yields:
        [`~ldae.data.Batch`]: uint8 images, their numbers as positions, their classes as labels.
    """
    mine = torch.arange(num_images)[rank::world_size]
    for begin in range(0, len(mine), sampling.batch_size):
        stopping.check()
        positions = mine[begin : begin + sampling.batch_size]  # (b,)
        labels = sampling.labels(positions, pipeline.model.config.num_class_embeds)
        output: Any = pipeline(  # type: ignore[operator] # each pipeline's own call
            class_labels=labels,
            guidance_scale=sampling.guidance_scale,
            num_inference_steps=sampling.steps,
            eta=sampling.eta,
            sampler=sampling.sampler,
            generator=[image_generator(sampling.seed, int(position)) for position in positions],
            output_type="pt",
        )
        yield Batch((output.images * 255).round().to(torch.uint8).cpu(), positions, labels)  # they were in [0, 1]


def gather_images(batches: Iterable[Batch]) -> Batch:
    """Gather the generated images of all processes, which share the work, in the order of their numbers."""
    shares = gather_objects(list(batches))
    every = [batch for each in shares for batch in each]
    positions = torch.cat([batch.positions for batch in every])
    order = positions.argsort()
    labels = [batch.labels for batch in every if batch.labels is not None]
    return Batch(
        torch.cat([batch.images for batch in every])[order],
        positions[order],
        torch.cat(labels)[order] if labels else None,
    )


def shown_count(n: int) -> str:
    """Write the N of FID-N: `"50K"`, or `"500"`."""
    return f"{n // 1000}K" if n % 1000 == 0 else str(n)


def generation_results(
    distances: ImageDistances,
    sampling: Sampling,
    pipeline: RunFolderPipeline,
    extractor: FeatureExtractor,
    weights: str,
    **about: Any,
) -> list[Result]:
    """Make results of the distances: FID-n and KID-n, with everything that they depend on.

    Args:
        distances ([`~ldae.evaluation.distances.ImageDistances`]): The distances.
        sampling ([`Sampling`]): Settings with which the images were generated.
        pipeline ([`LDAEPipeline`] or [`DDAEPipeline`]): The pipeline that generated them.
        extractor ([`FeatureExtractor`]): The network whose features were compared.
        weights (`str`): `"ema"`, `"raw"`, or `"unknown"`.
        **about: `dataset`, `split` and `checkpoint` of the results, and further `details`.
    """
    n = distances.num_generated
    protocol: dict[str, Any] = {
        "name": "generation",
        **extractor.protocol,
        "features": extractor.num_features,
        "reference_images": distances.num_reference,
        "sampler": pipeline.describe_sampler(sampling.sampler, sampling.eta),
        "eta": pipeline.resolve_sampler(sampling.sampler, sampling.eta)[1],
        "steps": pipeline.num_timesteps,
        "guidance_scale": sampling.guidance_scale,
        "weights": weights,
    }
    if pipeline.model.config.num_class_embeds is not None:
        protocol["classes"] = "all, in turn" if sampling.classes is None else list(sampling.classes)
    shown = shown_count(n)
    about |= {"seeds": sampling.seed, "n": n}
    details = about.pop("details", {})
    results = []
    if distances.fid is not None:
        results.append(Result(f"FID-{shown}", distances.fid, protocol=protocol, details=details, **about))
    if distances.kid is not None:
        subsets = {"subsets": KID_SUBSETS, "subset_size": distances.kid_subset_size}
        details = {**details, "subset_std": distances.kid_std}
        results.append(Result(f"KID-{shown}", distances.kid, protocol=protocol | subsets, details=details, **about))
    return results


class GenerationScores:
    """FID and KID of what pipelines generate, against one set of real images, which is read once.

    Args:
        source (`ImageSource`): The real images.
        extractor ([`FeatureExtractor`]): The network whose features are compared.
        num_images (`int`): Number of generated images.
        fid, kid (`bool`): Which distances are measured.
        batch_size (`int`): Images read and generated at once.
        num_workers (`int`): Worker processes that decode.
        reference_images (`int`, *optional*): Number of the first real images that are used; by default all.
        weights (`str`): `"ema"`, `"raw"`, or `"unknown"`, for the protocol.
        watched (`Callable`): Shows progress: takes batches, their number of images and a word for them, and returns
            the batches.
    """

    def __init__(
        self,
        source: ImageSource,
        extractor: FeatureExtractor,
        *,
        num_images: int,
        fid: bool,
        kid: bool,
        batch_size: int,
        num_workers: int,
        reference_images: int | None,
        weights: str,
        watched: Callable[[Iterable[Batch], int | None, str], Iterable[Batch]],
    ) -> None:
        self.source, self.extractor, self.num_images, self.weights = source, extractor, num_images, weights
        self.fid, self.kid = fid, kid
        self.batch_size, self.num_workers = batch_size, num_workers
        known = [n for n in (source.num_examples, reference_images) if n is not None]
        self.limit, self.num_reference = reference_images, min(known, default=None)
        self.watched = watched
        self._reference: ReferenceFeatures | None = None

    @property
    def metrics(self) -> list[str]:
        """Names of what is measured, such as `FID-50K`."""
        return [f"{name}-{shown_count(self.num_images)}" for name in ("FID", "KID") if getattr(self, name.lower())]

    def measure(
        self, pipeline: RunFolderPipeline, sampling: Sampling, **about: Any
    ) -> tuple[list[Result], ImageDistances]:
        """Generate this process's share of images, and compare those of all processes with the real ones.

        Args:
            pipeline ([`LDAEPipeline`] or [`DDAEPipeline`]): The pipeline that generates them.
            sampling ([`Sampling`]): Settings of generation.
            **about: See [`generation_results`].
        """
        config: Any = pipeline.model.config
        rank, world_size = share()
        if self._reference is None:
            batches = iterate_once(
                self.source,
                image_size=config.image_size,
                num_channels=config.num_channels,
                batch_size=self.batch_size,
                limit=self.limit,
                num_workers=self.num_workers,
                rank=rank,
                world_size=world_size,
            )
            watched = self.watched(batches, self.num_reference, "reference")
            self._reference = read_reference(watched, self.extractor, kid=self.kid)
        generated = generate_images(pipeline, self.num_images, sampling, rank=rank, world_size=world_size)
        watched = self.watched(generated, self.num_images, "generated")
        distances = image_distances(watched, self._reference, self.extractor, fid=self.fid, kid=self.kid)
        about = {"dataset": self.source.name, "split": self.source.split, **about}
        return generation_results(distances, sampling, pipeline, self.extractor, self.weights, **about), distances
