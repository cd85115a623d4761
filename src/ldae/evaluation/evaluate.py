"""Evaluation of encoders on a data set: scores with their protocol, and tables of several encoders."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from transformers import PreTrainedModel

from ldae.checkpoints import hash_model
from ldae.data import Batch, DataConfig, open_probe_images
from ldae.models.randomness_ldae import keyed_noise
from ldae.processes import choose_device
from ldae.results import Result
from ldae.shared_work import on_main

from .comparison import REPORTED
from .encoder import Encoder, Layer, PixelEncoder, as_encoder
from .features import Features, Prepare, centre_crop, extract_features
from .images import ImageSet, fixed_subset
from .knn import knn_accuracy, retrieval_map, similarity
from .linear_probe import ProbeSettings
from .metrics import mean_and_stderr
from .opening import open_encoder
from .probing import probe_features
from .protocol import HOLDOUT, SPLIT_SEED
from .ridge import few_shot_ridge
from .score_table import ScoreTable, column_title


_Measured = tuple[dict[str, Any], float, float | None, Sequence[int]]  # protocol, value, standard error, seeds
_Measure = Callable[[Features, Features], _Measured]
Checkpoint = str | os.PathLike[str] | PreTrainedModel | Encoder
METRICS = ("few_shot", "ridge", "logistic", "knn", "linear", "retrieval", "robustness")  # methods of `Evaluation`
# Of the protocols of probes with all labels: keys from the probe's description, and keys that are fixed.
DESCRIBED: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
    "ridge": (REPORTED["ridge"], {}),
    "logistic": (REPORTED["logistic"], {}),
    "adam": (("epochs", "batch_size", "learning_rate"), {"preset": "features once", "augmentation": []}),
}
RAW_PIXELS = 32  # largest side of the images whose pixels are compared; at 224 they would be 150,528 numbers
KEPT_ENCODERS = 4  # features of the latest encoders are kept
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
        encoder = self.encoder
        weights: Any = encoder if encoder.module is None else hash_model(encoder.module)
        settings = str([getattr(encoder, name, None) for name in ("processor", "cells")])
        return type(encoder).__name__, weights, settings, self.layer, self.timestep


class Evaluation:
    """A data set with labels, on which encoders are measured: one method a measure, each score with its protocol.

    Encoders are folders or Hub ids of an l-DAE, a DDAE or any vision model of `AutoModel`, or live models. All are
    frozen and give one vector an image: of a clean centre crop at the model's own size, normalised as its image
    processor does. The features of the last few encoders are kept, so that a second measure takes no second pass.
    Within [`~ldae.shared_work.sharing_work`], only the main process gets scores.

    Args:
        data (`str` or [`~ldae.data.DataConfig`]): Data set as a recipe names it: `"digits"`, a folder, a Hub id.
        device (`torch.device` or `str`, *optional*): Where to compute; by default a GPU where there is one.
        dtype (`torch.dtype`, *optional*): Autocast dtype for the features; by default no autocast.
        batch_size (`int`, defaults to 256): Images of a forward.
        num_workers (`int`, defaults to 0): Worker processes that decode.
        max_train, max_test (`int`, *optional*): Most images of either split, drawn at random but always the same.

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
        self._images: dict[tuple[int, int, int], ImageSet] = {}
        self._features: dict[Any, tuple[Features, Features]] = {}
        self._opened: dict[str, Encoder] = {}

    def few_shot(
        self, checkpoint: Checkpoint, *, shots: int = 5, draws: int = 20, seed: int = 0, **choice: Any
    ) -> Result:
        """Measure ridge probes with a few labels of each class; see [`~ldae.evaluation.ridge.few_shot_ridge`].

        Args:
            checkpoint: The encoder.
            shots (`int`, defaults to 5): Labels of each class.
            draws (`int`, defaults to 20): How often they are drawn, the same for every encoder.
            seed (`int`, defaults to 0): Seed of the draws.
            **choice: `layer` and `timestep` of an l-DAE or a DDAE; by default its own.

        Returns:
            [`~ldae.results.Result`]: mean accuracy and its standard error over draws.
        """

        def measure(train: Features, test: Features) -> _Measured:
            accuracies = few_shot_ridge(*_arrays(train, test), shots=shots, draws=draws, seed=seed)
            protocol = {"name": "ridge", "labels_per_class": shots, "draws": draws, "penalty": "leave-one-out"}
            return protocol, *mean_and_stderr(accuracies), (seed,)

        return self._measure(measure, checkpoint, choice)

    def ridge(self, checkpoint: Checkpoint, *, seed: int = 0, **choice: Any) -> Result:
        """Measure a ridge probe with all labels, whose penalty a tenth of the training images chooses.

        See [`~ldae.evaluation.ridge.fit_ridge_grid`]; the arguments are those of [`~Evaluation.few_shot`].
        """
        return self._probe("ridge", checkpoint, choice, (seed,), seed=seed)

    def logistic(self, checkpoint: Checkpoint, *, seed: int = 0, **choice: Any) -> Result:
        """Measure logistic regression with all labels, solved to convergence; its penalty is chosen as ridge's is.

        See [`~ldae.evaluation.logistic.fit_logistic_grid`]; the arguments are those of [`~Evaluation.few_shot`].
        """
        return self._probe("logistic", checkpoint, choice, (seed,), seed=seed)

    def linear(self, checkpoint: Checkpoint, settings: ProbeSettings = LINEAR, **choice: Any) -> Result:
        """Measure Adam's linear probes of features computed once: mean and standard error over the settings' seeds.

        A tenth of the training images chooses the learning rate. Unlike those of [`~Evaluation.logistic`], the probes
        may not have converged. For the papers' protocols, with augmentation, see
        [`~ldae.evaluation.probing.run_probe`].
        """
        return self._probe("adam", checkpoint, choice, settings.seeds, settings=settings, device=self.device)

    def _probe(
        self, name: str, checkpoint: Checkpoint, choice: dict[str, Any], seeds: Sequence[int], **options: Any
    ) -> Result:
        reported, fixed = DESCRIBED[name]

        def measure(train: Features, test: Features) -> _Measured:
            probes = probe_features(name, train, test, **options)
            details = {key: value for key, value in probes.describe(0).items() if key in reported}
            return {"name": probes.name, **details, **fixed, "holdout": HOLDOUT}, *probes.score(0), seeds

        return self._measure(measure, checkpoint, choice)

    def knn(
        self,
        checkpoint: Checkpoint,
        *,
        k: int = 20,
        temperature: float = 0.07,
        whiten: int | None = None,
        **choice: Any,
    ) -> Result:
        """Measure the vote of the k nearest training images; see [`~ldae.evaluation.knn.knn_predict`]."""

        def measure(train: Features, test: Features) -> _Measured:
            protocol = {"name": "knn", "k": k, "temperature": temperature, **similarity(whiten)}
            value = knn_accuracy(*_arrays(train, test), k=k, temperature=temperature, whiten=whiten)
            return protocol, value, None, (0,)

        return self._measure(measure, checkpoint, choice)

    def retrieval(self, checkpoint: Checkpoint, *, whiten: int | None = None, **choice: Any) -> Result:
        """Measure the mean average precision of test images that search for their class among the training images.

        See [`~ldae.evaluation.knn.retrieval_map`]; nothing is random in it.
        """

        def measure(train: Features, test: Features) -> _Measured:
            protocol = {"name": "retrieval", **similarity(whiten), "gallery": "training images"}
            return protocol, retrieval_map(*_arrays(train, test), whiten=whiten), None, (0,)

        return self._measure(measure, checkpoint, choice, metric="map")

    def robustness(
        self,
        checkpoint: Checkpoint,
        sigmas: Sequence[float] | None = None,
        *,
        timesteps: Sequence[int] | None = None,
        seed: int = 0,
        **choice: Any,
    ) -> list[Result]:
        """Measure one ridge probe of clean training images on test images with Gaussian noise, over noise levels.

        The noise is the same for every encoder and at every level.

        Args:
            checkpoint: Any encoder; it is not told about the noise.
            sigmas (`Sequence[float]`, *optional*): Standard deviations of the noise, for pixels in [-1, 1]; by default
                0.05 to 0.8.
            timesteps (`Sequence[int]`, *optional*): For an l-DAE or a DDAE, in place of `sigmas`: its own corruption
                at each t, which it is told. The probe is still that of the default time step.
            seed (`int`, defaults to 0): Seed of the noise, and of the split that chooses the penalty.
            **choice: As in [`~Evaluation.few_shot`].

        Returns:
            `list[Result]`: the clean score first, then one for each level.

        Raises:
            ValueError: If both are given, or the encoder has no such time steps.
        """
        chosen = self._choose(checkpoint, **choice)
        if sigmas is not None and timesteps is not None:
            raise ValueError("sigmas and timesteps are both given; give one of them.")
        noisy: dict[tuple[str, float], torch.Tensor] = {}
        if timesteps is not None:
            if chosen.timestep is None:
                raise ValueError(f"timesteps only apply to l-DAE and DDAE models; give sigmas for {chosen.name}.")
            found = self._extract(chosen, 1, timesteps=list(timesteps), noisy=True, seed=seed)
            noisy = {("noise_timestep", t): found.flat[:, index] for index, t in enumerate(timesteps)}
        else:
            for sigma in SIGMAS if sigmas is None else sigmas:
                if sigma < 0:
                    raise ValueError(f"sigmas={list(sigmas or ())} must be numbers of 0 or more.")
                found = self._extract(chosen, 1, prepare=_noisy_crop(chosen.encoder.image_size, sigma, seed))
                noisy["noise_sigma", sigma] = found.flat[:, 0]
        train, test = self._both(chosen)

        def measure() -> list[Result]:
            probes = probe_features("ridge", train, test, seed=seed)
            protocol = {"name": "robustness", "probe": "ridge", "penalty": float(probes.penalty[0])}
            scores = [self._score(chosen, (protocol, probes.score(0)[0], None, (seed,)))]
            for (kind, level), features in noisy.items():
                hits = probes.predict(features[:, None])[:, 0] == test.classes
                at_level = {**protocol, "input": "noisy", kind: level}
                scores.append(self._score(chosen, (at_level, float(hits.double().mean()), None, (seed,))))
            return scores

        return on_main(measure)

    def compare(
        self,
        *checkpoints: Checkpoint,
        metrics: Sequence[str] = ("few_shot", "knn", "retrieval"),
        untrained: bool = False,
        raw_pixels: bool = True,
        **options: Any,
    ) -> ScoreTable:
        """Measure several encoders under the same probes, and raw pixels.

        Args:
            *checkpoints: The encoders, ours and other people's.
            metrics (`Sequence[str]`): Names of the methods above; each makes a column, robustness one for each level
                of noise.
            untrained (`bool`, defaults to `False`): Whether each encoder's untrained network has a row.
            raw_pixels (`bool`, defaults to `True`): Whether raw pixels have one, of at most 32 pixels a side.
            **options: Options of these methods: `shots`, `draws`, `k`, `temperature`, `whiten`, `settings`, `sigmas`,
                `seed`.

        Raises:
            ValueError: For an unknown metric or option, or a checkpoint that cannot be loaded.
        """
        if not metrics or not set(metrics) <= set(METRICS):
            raise ValueError(f"metrics={list(metrics)} must be some of {', '.join(METRICS)}.")
        taken = {metric: signature(getattr(self, metric)).parameters for metric in metrics}
        stray = [name for name in options if not any(name in parameters for parameters in taken.values())]
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

    def _measure(self, measure: _Measure, checkpoint: Any, choice: dict[str, Any], metric: str = "accuracy") -> Result:
        """Compute an encoder's features in all processes, and measure them in the main one."""
        chosen = self._choose(checkpoint, **choice)
        train, test = self._both(chosen)
        return on_main(lambda: self._score(chosen, measure(train, test), metric))

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

    def _batches(self, size: int, channels: int, part: int) -> Iterator[Batch]:
        if (size, channels, part) not in self._images:
            fields: dict[str, Any] = {"image_size": size, "num_channels": channels, "batch_size": self.batch_size}
            images = ImageSet(self.sources[part], num_workers=self.num_workers, memory=2**30, **fields)
            self._images[size, channels, part] = images
        return self._images[size, channels, part].batches()

    def _score(self, chosen: _Choice, measured: _Measured, metric: str = "accuracy") -> Result:
        """Make the result of an encoder's measure."""
        protocol, value, stderr, seeds = measured
        train, test = self._both(chosen)
        described: dict[str, Any] = {"pooling": chosen.encoder.pooling}
        if chosen.encoder.module is not None:
            described = {"layer": chosen.layer, "timestep": chosen.timestep, "input": "clean", **described}
        described |= {"train_images": len(train.classes), **self.data.chosen_labels, **protocol}
        about: dict[str, Any] = {"checkpoint": chosen.name, "dataset": self.sources[1].name, "split": self.split}
        fields: dict[str, Any] = {"stderr": stderr, "seeds": tuple(seeds), "n": len(test.classes)}
        return Result(metric, value, protocol=described, **about, **fields)


def _arrays(train: Features, test: Features) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features `(n, C)` and classes of the training images, then of the test images."""
    return train.flat[:, 0], train.classes, test.flat[:, 0], test.classes


def _noisy_crop(image_size: int, sigma: float, seed: int) -> Prepare:
    """Prepare the centre crop with noise that depends only on the seed and each image's position."""

    def prepare(images: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        pixels = centre_crop(image_size)(images, positions)  # (b, C, S, S)
        return pixels + sigma * keyed_noise(seed, positions, pixels.shape[1:])

    return prepare
