"""Evaluation of encoders on a data set: scores with their protocol, and tables of several encoders."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from ldae.checkpoints import hash_model
from ldae.data import DataConfig, open_probe_images
from ldae.models.randomness_ldae import NOISE, keyed_normal
from ldae.processes import choose_device
from ldae.results import Result
from ldae.shared_work import on_main

from .encoder import Encoder, Layer, PixelEncoder, as_encoder
from .features import Features, Prepare, centre_crop, extract_features
from .images import ImageSet, fixed_subset
from .knn import knn_accuracy, retrieval_map
from .linear_probe import ProbeSettings
from .metrics import mean_and_stderr
from .opening import open_encoder
from .probing import probe_features
from .protocol import HOLDOUT, SPLIT_SEED
from .ridge import few_shot_ridge
from .score_table import ScoreTable, column_title


T = TypeVar("T")
Checkpoint = str | os.PathLike[str] | PreTrainedModel | Encoder
METRICS = ("few_shot", "ridge", "knn", "linear", "retrieval", "robustness")
RAW_PIXELS = 32  # side of the images whose pixels are compared; those of a large model would be a million numbers
KEPT_ENCODERS = 4  # whose features are kept
SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8)  # of noise on pixels in [-1, 1]
LINEAR = ProbeSettings()


@dataclass(frozen=True)
class _Choice:
    """An encoder at one layer and time step."""

    name: str
    encoder: Encoder
    layer: Layer | None
    timestep: int | None

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """Identify its features by the weights as they are now, so that a model may train between measures."""
        module, processor = self.encoder.module, getattr(self.encoder, "processor", None)
        weights: Any = self.encoder if module is None else hash_model(module)
        return type(self.encoder).__name__, weights, str(processor), self.layer, self.timestep


class Evaluation:
    """A data set with labels, on which encoders are measured: one method a measure, every score with its protocol and
    seeds.

    Encoders are folders or Hub ids of an l-DAE, a DDAE or any vision model of `AutoModel` (ViTMAE, DINOv2, I-JEPA, a
    ResNet), or live models. All are frozen and give one vector an image: of a clean centre crop at the model's own
    size, normalised as its image processor does. The features of the last few encoders are kept, so that a second
    measure takes no second pass. Within [`~ldae.shared_work.sharing_work`], only the main process gets scores.

    Args:
        data (`str` or [`~ldae.data.DataConfig`]): Data set as a recipe names it: `"digits"`, a folder, a Hub id.
        device (`torch.device` or `str`, *optional*): Where to compute; by default a GPU where there is one.
        dtype (`torch.dtype`, *optional*): Autocast of the features to it; by default none.
        batch_size (`int`, defaults to 256): Images of a forward.
        num_workers (`int`, defaults to 0): Worker processes that decode.
        max_train, max_test (`int`, *optional*): At most so many images of either split, drawn at random but always the
            same.

    Raises:
        ValueError: If the data cannot be opened or has no labels.

    Example:
        >>> from ldae import LDAEConfig, LDAEModel
        >>> from ldae.evaluation import Evaluation
        >>> digits = Evaluation("digits", max_train=200, max_test=100)
        >>> model = LDAEModel(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
        >>> score = digits.few_shot(model, shots=5, draws=3)
        >>> score.metric, score.protocol["labels_per_class"], score.n
        ('accuracy', 5, 100)
    """

    def __init__(
        self,
        data: str | DataConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        max_train: int | None = None,
        max_test: int | None = None,
    ) -> None:
        self.data = DataConfig(data) if isinstance(data, str) else data
        self.device = choose_device(None if device is None else str(device))
        self.dtype, self.batch_size, self.num_workers = dtype, batch_size, num_workers
        sources = open_probe_images(self.data)
        for source in sources:
            if source.label_column is None:
                raise ValueError(f"{source.description} has no labels, which probes need; name label_column.")
        self.sources = tuple(
            source if limit is None else fixed_subset(source, limit, SPLIT_SEED)
            for source, limit in zip(sources, (max_train, max_test), strict=True)
        )
        self.split = sources[1].split + ("" if max_test is None else f", at most {max_test} images")
        self._images: dict[tuple[int, int], tuple[ImageSet, ImageSet]] = {}
        self._features: dict[Any, tuple[Features, Features]] = {}
        self._opened: dict[str, Encoder] = {}

    def few_shot(
        self, checkpoint: Checkpoint, *, shots: int = 5, draws: int = 20, seed: int = 0, **choice: Any
    ) -> Result:
        """Accuracy of ridge probes with a few labels of each class: mean and standard error over draws of these, the
        same for every encoder. See [`~ldae.evaluation.ridge.few_shot_ridge`].

        Args:
            checkpoint: The encoder.
            shots (`int`, defaults to 5): Labels of each class.
            draws (`int`, defaults to 20): How often they are drawn.
            seed (`int`, defaults to 0): Seed of the draws.
            **choice: `layer` and `timestep` of an l-DAE or a DDAE; by default its own.
        """

        def measure(chosen: _Choice) -> Result:
            value, stderr = mean_and_stderr(few_shot_ridge(*self._arrays(chosen), shots=shots, draws=draws, seed=seed))
            protocol = {"name": "ridge", "labels_per_class": shots, "draws": draws, "penalty": "leave-one-out"}
            return self._score(chosen, protocol, value, stderr, (seed,))

        return self._measure(measure, checkpoint, choice)

    def ridge(self, checkpoint: Checkpoint, *, seed: int = 0, **choice: Any) -> Result:
        """Accuracy of a ridge probe with all labels, a tenth of the training images choosing its penalty. See
        [`~ldae.evaluation.ridge.fit_ridge_grid`]; arguments as of [`~Evaluation.few_shot`].
        """

        def measure(chosen: _Choice) -> Result:
            probes = probe_features("ridge", *self._both(chosen), seed=seed)
            protocol = {"name": "ridge", "penalty": float(probes.penalty[0]), "holdout": HOLDOUT}
            value, stderr = probes.score(0)
            return self._score(chosen, protocol, value, stderr, (seed,))

        return self._measure(measure, checkpoint, choice)

    def knn(self, checkpoint: Checkpoint, *, k: int = 20, temperature: float = 0.07, **choice: Any) -> Result:
        """Accuracy of the vote of the k nearest training images. See [`~ldae.evaluation.knn.knn_predict`]; nothing is
        random in it.
        """

        def measure(chosen: _Choice) -> Result:
            value = knn_accuracy(*self._arrays(chosen), k=k, temperature=temperature)
            protocol = {"name": "knn", "k": k, "temperature": temperature, "similarity": "cosine"}
            return self._score(chosen, protocol, value, None, (0,))

        return self._measure(measure, checkpoint, choice)

    def linear(self, checkpoint: Checkpoint, settings: ProbeSettings = LINEAR, **choice: Any) -> Result:
        """Accuracy of linear probes on features computed once: mean and standard error over the settings' seeds, a
        tenth of the training images choosing the learning rate. (The papers' protocols, with augmentation, are
        [`~ldae.evaluation.probing.run_probe`]'s.)
        """

        def measure(chosen: _Choice) -> Result:
            probes = probe_features("adam", *self._both(chosen), settings=settings, device=self.device)
            details = probes.describe(0)
            protocol = {
                "name": "linear",
                "preset": "features once",
                **{key: details[key] for key in ("epochs", "batch_size", "learning_rate")},
                "augmentation": [],
                "holdout": HOLDOUT,
            }
            value, stderr = probes.score(0)
            return self._score(chosen, protocol, value, stderr, settings.seeds)

        return self._measure(measure, checkpoint, choice)

    def retrieval(self, checkpoint: Checkpoint, **choice: Any) -> Result:
        """Mean average precision of test images that look for their class among the training images. See
        [`~ldae.evaluation.knn.retrieval_map`]; nothing is random in it.
        """

        def measure(chosen: _Choice) -> Result:
            value = retrieval_map(*self._arrays(chosen))
            protocol = {"name": "retrieval", "similarity": "cosine", "gallery": "training images"}
            return replace(self._score(chosen, protocol, value, None, (0,)), metric="map")

        return self._measure(measure, checkpoint, choice)

    def robustness(
        self,
        checkpoint: Checkpoint,
        sigmas: Sequence[float] | None = None,
        *,
        timesteps: Sequence[int] | None = None,
        seed: int = 0,
        **choice: Any,
    ) -> list[Result]:
        """Accuracy of one fixed probe over noise levels: a ridge probe of clean training images classifies test images
        with Gaussian noise, the same for every encoder and at every level.

        Args:
            checkpoint: Any encoder, which is not told of the noise.
            sigmas (`Sequence[float]`, *optional*): Standard deviations of the noise, for pixels in [-1, 1]; by default
                0.05 to 0.8.
            timesteps (`Sequence[int]`, *optional*): In place of `sigmas`, of an l-DAE or a DDAE: its own corruption at
                each t, of which it is told. The probe is still that of its own time step, so that what the network
                does differently at another t counts too, also where there is hardly any noise.
            seed (`int`, defaults to 0): Of the noise, and of the tenth of the training images that chooses the
                penalty.
            **choice: As of [`~Evaluation.few_shot`].

        Returns:
            `list[Result]`: the clean score first, then one for each level.

        Raises:
            ValueError: If both are given, for time steps of another model, or ones that do not exist.
        """
        chosen = self._choose(checkpoint, **choice)
        if sigmas is not None and timesteps is not None:
            raise ValueError("sigmas and timesteps are both given; give one of them.")
        if timesteps is not None and chosen.timestep is None:
            raise ValueError(
                f"timesteps are of l-DAE and DDAE models, which are told of noise; give sigmas for {chosen.name}."
            )
        noisy: dict[tuple[str, float], torch.Tensor] = {}
        if timesteps is not None:
            found = self._extract(chosen, 1, timesteps=list(timesteps), noisy=True, seed=seed)
            noisy = {("noise_timestep", t): found.flat[:, index] for index, t in enumerate(timesteps)}
        else:
            for sigma in SIGMAS if sigmas is None else sigmas:
                if sigma < 0:
                    raise ValueError(f"sigmas={list(sigmas or ())} must be numbers of 0 or more.")
                found = self._extract(chosen, 1, prepare=_noisy_crop(chosen.encoder.image_size, sigma, seed))
                noisy["noise_sigma", sigma] = found.flat[:, 0]

        def measure(chosen: _Choice) -> list[Result]:
            probes = probe_features("ridge", *self._both(chosen), seed=seed)
            truth = self._both(chosen)[1].classes
            protocol = {"name": "robustness", "probe": "ridge", "penalty": float(probes.penalty[0])}
            scores = [self._score(chosen, protocol, probes.score(0)[0], None, (seed,))]
            for (kind, level), features in noisy.items():
                value = float((probes.predict(features[:, None])[:, 0] == truth).double().mean())
                scores.append(self._score(chosen, {**protocol, "input": "noisy", kind: level}, value, None, (seed,)))
            return scores

        return self._measure(measure, chosen, {})

    def compare(
        self,
        *checkpoints: Checkpoint,
        metrics: Sequence[str] = ("few_shot", "knn", "retrieval"),
        untrained: bool = False,
        raw_pixels: bool = True,
        **options: Any,
    ) -> ScoreTable:
        """A table of several encoders under the same probes, and of raw pixels.

        Args:
            checkpoints: The encoders, ours and other people's.
            metrics (`Sequence[str]`): Of `"few_shot"`, `"ridge"`, `"knn"`, `"linear"`, `"retrieval"` and
                `"robustness"`; each is a column, and robustness one for each level of noise.
            untrained (`bool`, defaults to `False`): Whether each encoder's network with weights drawn afresh has a
                row.
            raw_pixels (`bool`, defaults to `True`): Whether raw pixels have one, at 32 pixels a side or the smallest
                encoder's size.
            **options: Of the measures, by name: `shots`, `draws`, `k`, `temperature`, `settings`, `sigmas`, `seed`.

        Returns:
            [`~ldae.evaluation.score_table.ScoreTable`]: print it, or `save` it.

        Raises:
            ValueError: for an unknown metric or option, or a checkpoint that cannot be loaded.
        """
        if not metrics or not set(metrics) <= set(METRICS):
            raise ValueError(f"metrics={list(metrics)} must be some of {', '.join(METRICS)}.")
        taken = {
            "few_shot": ("shots", "draws", "seed"),
            "ridge": ("seed",),
            "knn": ("k", "temperature"),
            "linear": ("settings",),
            "retrieval": (),
            "robustness": ("sigmas", "seed"),
        }
        stray = [name for name in options if not any(name in taken[metric] for metric in metrics)]
        if stray:
            raise ValueError(f"{stray[0]}={options[stray[0]]!r} is not an option of {', '.join(metrics)}.")
        scores: dict[str, dict[str, Result]] = {}
        named: Counter[str] = Counter()

        def add(chosen: _Choice) -> None:
            number = named[chosen.name] = named[chosen.name] + 1
            chosen = replace(chosen, name=f"{chosen.name} ({number})") if number > 1 else chosen
            scores[chosen.name] = {}
            for metric in metrics:
                given = {key: value for key, value in options.items() if key in taken[metric]}
                found = getattr(self, metric)(chosen, **given) or []
                for score in found if isinstance(found, list) else [found]:
                    scores[chosen.name][column_title(score)] = score

        sizes = []
        for checkpoint in checkpoints:
            chosen = self._choose(checkpoint)
            sizes.append(chosen.encoder.image_size)
            add(chosen)
            if untrained:
                add(replace(chosen, name=f"{chosen.name}, untrained", encoder=chosen.encoder.untrained(0)))
            self._opened.pop(chosen.name, None)  # one at a time
        if raw_pixels:
            side = min([RAW_PIXELS, *sizes])
            add(_Choice(f"raw pixels, {side} x {side}", PixelEncoder(side), None, None))
        return ScoreTable(scores)

    def _measure(self, measure: Callable[[_Choice], T], checkpoint: Any, choice: dict[str, Any]) -> T:
        """Compute an encoder's features in all processes, and measure them in the main one."""
        chosen = self._choose(checkpoint, **choice)
        self._both(chosen)
        return on_main(lambda: measure(chosen))

    def _choose(self, checkpoint: Any, layer: Layer | None = None, timestep: int | None = None) -> _Choice:
        if isinstance(checkpoint, _Choice):
            return checkpoint
        if isinstance(checkpoint, str | os.PathLike):
            name = os.fspath(checkpoint)
            if name not in self._opened:
                self._opened = {name: open_encoder(name, self.device)}
            encoder = self._opened[name]
        else:
            encoder = as_encoder(checkpoint).to(self.device)
            name = encoder.name
        if encoder.has_choices:
            layer = encoder.default_layer if layer is None else layer
            timestep = encoder.default_timestep if timestep is None else timestep
        elif layer is not None or timestep is not None:
            raise ValueError(f"layer and timestep are choices of l-DAE and DDAE models; {name} has neither.")
        return _Choice(name, encoder, layer, timestep)

    def _arrays(self, chosen: _Choice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return features `(n, C)` and classes of the training images, then of the test images."""
        train, test = self._both(chosen)
        return train.flat[:, 0], train.classes, test.flat[:, 0], test.classes

    def _both(self, chosen: _Choice) -> tuple[Features, Features]:
        """Return features of the training images and of the test images, computed once."""
        if chosen.key not in self._features:
            while len(self._features) >= KEPT_ENCODERS:
                del self._features[next(iter(self._features))]
            self._features[chosen.key] = (self._extract(chosen, 0), self._extract(chosen, 1))
        return self._features[chosen.key]

    def _extract(self, chosen: _Choice, part: int, **options: Any) -> Features:
        """Extract features of the training (0) or the test (1) images."""
        encoder = chosen.encoder
        options = {"layers": [chosen.layer], "timesteps": [chosen.timestep], **options}
        batches = self._batches(encoder.image_size, encoder.num_channels, part)
        return extract_features(encoder, batches, device=self.device, dtype=self.dtype, **options)

    def _batches(self, size: int, channels: int, part: int) -> Any:
        if (size, channels) not in self._images:
            fields: dict[str, Any] = {"image_size": size, "num_channels": channels, "batch_size": self.batch_size}
            self._images[size, channels] = tuple(  # type: ignore[assignment]
                ImageSet(source, num_workers=self.num_workers, memory=2**30, **fields) for source in self.sources
            )
        return self._images[size, channels][part].batches()

    def _score(
        self, chosen: _Choice, protocol: dict[str, Any], value: float, stderr: float | None, seeds: Sequence[int]
    ) -> Result:
        _, labels, _, test_labels = self._arrays(chosen)
        described: dict[str, Any] = {"pooling": chosen.encoder.pooling}
        if chosen.encoder.module is not None:
            described = {"layer": chosen.layer, "timestep": chosen.timestep, "input": "clean", **described}
        return Result(
            checkpoint=chosen.name,
            metric="accuracy",
            value=value,
            stderr=stderr,
            protocol={**described, "train_images": len(labels), **protocol},
            seeds=tuple(seeds),
            dataset=self.sources[1].name,
            split=self.split,
            n=len(test_labels),
        )


def _noisy_crop(image_size: int, sigma: float, seed: int) -> Prepare:
    """Prepare the centre crop with noise that depends only on the seed and each image's position."""

    def prepare(images: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        pixels = centre_crop(image_size)(images, positions)  # (b, C, S, S)
        return pixels + sigma * keyed_normal(seed, NOISE, positions, pixels[0].numel()).view(pixels.shape)

    return prepare
