"""Linear probes trained by Adam (App. A): BatchNorm without parameters and a linear layer, many in one pass."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional as F

from ldae import stopping

from .feature_store import Rows, pieces_of
from .grid_probes import Part
from .metrics import mean_and_stderr


BN_EPS = 1e-6
# Steps an epoch that a small data set keeps; ImageNet has 78 at the paper's batch of 16384.
MIN_STEPS_PER_EPOCH = 64
MAX_LR_EXTENSIONS = 3  # of the grid of rates at either end, by the verbs
EXTENSION = 10.0  # factor between the edge of the grid of rates and the rate that is added beyond it


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of linear probes. The defaults are the paper's (App. A, as in MAE) where it gives them.

    Args:
        epochs (`int`, defaults to 90): Passes over the training features.
        batch_size (`int`, *optional*): Examples a step. By default the paper's 16384, or n / 64 (at least 256, at most
            n) where that is less: a small data set would otherwise see too few steps.
        base_lr (`float`, defaults to 1e-4): Learning rate at a batch of 256; it grows in proportion (6.4e-3 at 16384)
            and falls to zero along half a cosine.
        lr_multipliers (`tuple[float, ...]`, defaults to (1, 10, 100)): One probe for each. The paper has 1 alone;
            smaller data sets, on which it takes fewer steps, need larger ones.
        seeds (`tuple[int, ...]`, defaults to (0, 1, 2)): One probe for each: initial weights and order of the
            examples.
        batch_norm (`bool`, defaults to `True`): Whether a BatchNorm without parameters is in front of the linear
            layer, as in l-DAE's paper; DDAE's public code has none.
        max_lr_extensions (`int`, defaults to 0): How often the grid of rates may grow by a factor of 10 at either end,
            where a feature set's chosen rate is at its edge; see [`train_adam_probes`].

    The optimiser is Adam with default betas: l-DAE's paper names none, DDAE's has Adam. Initial weights are normal
    with standard deviation 0.01, as MAE's.
    """

    epochs: int = 90
    batch_size: int | None = None
    base_lr: float = 1e-4
    lr_multipliers: tuple[float, ...] = (1.0, 10.0, 100.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_norm: bool = True
    max_lr_extensions: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "base_lr", "batch_size"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be positive.")
        if self.max_lr_extensions < 0:
            raise ValueError(f"max_lr_extensions={self.max_lr_extensions} must be 0 or more.")
        for name in ("lr_multipliers", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={values} must be one or more, each once.")
        if min(self.lr_multipliers) <= 0:
            raise ValueError(f"lr_multipliers={self.lr_multipliers} must be positive, as learning rates are.")

    def batch_size_for(self, n: int) -> int:
        """Return the batch size for n training examples."""
        return min(n, self.batch_size or min(16384, max(256, n // MIN_STEPS_PER_EPOCH)))

    def learning_rates(self, n: int) -> list[float]:
        """Return the peak learning rate of each multiplier for n examples: base_lr x batch / 256 x multiplier."""
        return [self.base_lr * self.batch_size_for(n) / 256 * multiplier for multiplier in self.lr_multipliers]

    def is_at_edge(self, rate_index: int) -> bool:
        """Tell whether a rate is the smallest or the largest of several."""
        rates = self.lr_multipliers
        return len(rates) > 1 and rates[rate_index] in (min(rates), max(rates))


@dataclass(frozen=True)
class LinearProbes:
    """Trained probes of S seeds, F feature sets and R learning rates.

    `weight` is `(S, F, R, C, K)`, `bias` `(S, F, R, K)`, and the BatchNorms' running `mean` and `var` `(S, F, C)`.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor

    def predict(self, features: torch.Tensor | Rows) -> torch.Tensor:
        """Predict the classes `(S, F, R, n)` of features `(n, F, C)`."""
        device, num_seeds = self.weight.device, len(self.weight)
        predictions = []
        for chunk in pieces_of(features, copies=1 + num_seeds):
            x = chunk.to(device).transpose(0, 1)[None]  # (1, F, b, C)
            x = (x - self.mean[:, :, None]) * (self.var[:, :, None] + BN_EPS).rsqrt()  # (S, F, b, C)
            logits = x[:, :, None] @ self.weight + self.bias[..., None, :]  # (S, F, R, b, K)
            predictions.append(logits.argmax(dim=-1))
        return torch.cat(predictions, dim=-1)

    def accuracies(self, features: torch.Tensor | Rows, labels: torch.Tensor) -> torch.Tensor:
        """Compute the accuracies `(S, F, R)` on features `(n, F, C)` with the classes `(n,)`."""
        if len(labels) == 0 or len(features) != len(labels):
            raise ValueError(f"{len(features)} features and {len(labels)} classes to score; give as many, at least 1.")
        hits, begin = torch.zeros(self.weight.shape[:3], dtype=torch.float64), 0
        for piece in pieces_of(features):
            predictions = self.predict(piece).cpu()  # (S, F, R, b)
            hits += (predictions == labels[begin : begin + len(piece)].cpu()).sum(dim=-1)
            begin += len(piece)
        return hits / len(labels)

    def folded(self, seed_index: int, feature_index: int, lr_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Fold one probe's BatchNorm into a linear layer of raw features, `(weight (K, C), bias (K,))` on the CPU."""
        place = (seed_index, feature_index)
        weight, bias = fold_batch_norm(
            self.weight[*place, lr_index].T, self.bias[*place, lr_index], self.mean[place], self.var[place]
        )
        return weight.float().cpu(), bias.float().cpu()


def fold_batch_norm(
    weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold a BatchNorm of running `mean` and `var` `(C,)` into the linear layer behind it, in float64."""
    weight = weight.double() * (var.double() + BN_EPS).rsqrt()
    return weight, bias.double() - weight @ mean.double()


def train_linear_probes(
    epoch_features: Callable[[int], torch.Tensor | Rows],
    labels: torch.Tensor,
    *,
    num_classes: int,
    settings: ProbeSettings,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[int], None] | None = None,
) -> LinearProbes:
    """Train a probe for each seed, feature set and learning rate: every step is one batched matrix product.

    No probe affects another, so training them together gives what training each alone would. Each seed has its own
    order of the examples; feature sets and learning rates share it, and the initial weights, so that they compare. The
    BatchNorms' running statistics are plain averages over all steps: a frozen encoder's features do not drift.

    Args:
        epoch_features (`Callable[[int], torch.Tensor | Rows]`): From the epoch, counted from 0, to features
            `(n, F, C)`: computed anew with augmentation, or the same each time.
        labels (`torch.LongTensor` of shape `(n,)`): Classes from 0 to num_classes - 1.
        num_classes (`int`): K.
        settings ([`ProbeSettings`]): Epochs, batch size, learning rates, seeds.
        device (`torch.device` or `str`, defaults to `"cpu"`): Where the probes train.
        on_epoch (`Callable[[int], None]`, *optional*): Called with the number of epochs done, for progress.

    Returns:
        [`LinearProbes`].

    Raises:
        ValueError: If features and labels do not fit.

    Example:
        >>> x, y = torch.randn(64, 1, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
        >>> x[:, 0, 0] += 4 * y
        >>> settings = ProbeSettings(epochs=20, base_lr=1.0, lr_multipliers=(1.0,), seeds=(0,))
        >>> probes = train_linear_probes(lambda epoch: x, y, num_classes=2, settings=settings)
        >>> bool((probes.predict(x)[0, 0, 0] == y).float().mean() > 0.9)
        True
    """
    n, num_seeds, num_rates = len(labels), len(settings.seeds), len(settings.lr_multipliers)
    labels = labels.to(device)
    steps_per_epoch = math.ceil(n / settings.batch_size_for(n))
    total_steps = settings.epochs * steps_per_epoch
    generators = [torch.Generator().manual_seed(seed) for seed in settings.seeds]
    peak_rates = settings.learning_rates(n)

    step = 0
    for epoch in range(settings.epochs):
        stopping.check()
        features = epoch_features(epoch)
        if len(features.shape) != 3 or len(features) != n:
            raise ValueError(f"features must be (n, F, C) for n={n} labels; got {tuple(features.shape)}.")
        features = features.to(device)
        _, num_sets, c = features.shape
        if epoch == 0:
            initial = torch.stack([0.01 * torch.randn(c, num_classes, generator=g) for g in generators])  # (S, C, K)
            initial = initial.to(device).repeat_interleave(num_sets, dim=0)  # (S * F, C, K)
            weights = [initial.clone().requires_grad_() for _ in range(num_rates)]
            biases = [initial.new_zeros(len(initial), num_classes).requires_grad_() for _ in range(num_rates)]
            groups = [{"params": list(pair), "lr": lr} for *pair, lr in zip(weights, biases, peak_rates, strict=True)]
            optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
            mean = initial.new_zeros(len(initial), c)
            var = torch.full_like(mean, 1 - BN_EPS)  # which changes nothing, without a BatchNorm
        orders = torch.stack([torch.randperm(n, generator=g) for g in generators]).to(device)  # (S, n)
        # Pieces of equal size (but for one example): every example counts once an epoch, no piece is tiny.
        for index in orders.tensor_split(steps_per_epoch, dim=1):  # (S, b)
            b = index.shape[1]
            y = labels[index].repeat_interleave(num_sets, dim=0)  # (S * F, b)
            x = features[index].transpose(1, 2).flatten(0, 1)  # (S * F, b, C)
            weight = torch.cat(weights, dim=2)  # (S * F, C, R * K)
            if settings.batch_norm:
                batch_mean = x.mean(dim=1)  # (S * F, C)
                x = x - batch_mean[:, None]
                batch_var = x.square().mean(dim=1)
                mean.lerp_(batch_mean, 1 / (step + 1))
                var.lerp_(batch_var * b / max(b - 1, 1), 1 / (step + 1))
                # Scaling the weights scales the features, at less cost.
                weight = weight * (batch_var + BN_EPS).rsqrt()[..., None]
            bias = torch.cat(biases, dim=1)[:, None]  # (S * F, 1, R * K)
            logits = torch.baddbmm(bias, x, weight).reshape(-1, num_classes)  # (S * F * b * R, K)
            # A sum over probes of each one's mean: their gradients stay apart.
            loss = F.cross_entropy(logits, y.flatten().repeat_interleave(num_rates), reduction="sum") / b
            for group, peak in zip(optimizer.param_groups, peak_rates, strict=True):
                group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / total_steps))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        del features  # before the next are computed
        if on_epoch is not None:
            on_epoch(epoch + 1)

    def shaped(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([t.detach() for t in tensors], dim=1).unflatten(0, (num_seeds, num_sets))

    return LinearProbes(
        weight=shaped(weights),
        bias=shaped(biases),
        mean=mean.unflatten(0, (num_seeds, num_sets)),
        var=var.unflatten(0, (num_seeds, num_sets)),
    )


@dataclass(frozen=True)
class AdamProbes:
    """Linear probes that Adam trained, and their accuracies; held-out images choose learning rates and a feature set.

    Args:
        settings ([`ProbeSettings`]): With all learning rates that were tried.
        probes ([`LinearProbes`]): The probes.
        held_out (`torch.Tensor` of shape `(S, F, R)`, *optional*): Accuracies on the held-out images; `None` where
            there was nothing to choose.
        test (`torch.Tensor` of shape `(S, F, R)`): Accuracies on the test images.
        num_train (`int`): Number of training images.
    """

    name = "linear"

    settings: ProbeSettings
    probes: LinearProbes
    held_out: torch.Tensor | None
    test: torch.Tensor
    num_train: int

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds over which accuracies are means."""
        return self.settings.seeds

    @cached_property
    def rates(self) -> tuple[int, ...]:
        """Index of each feature set's learning rate: the best on held-out images, of equal ones the first."""
        return (0,) if self.held_out is None else tuple(self.held_out.mean(dim=0).argmax(dim=1).tolist())

    @property
    def best(self) -> int:
        """Index of the feature set that does best on held-out images, of equal ones the first."""
        return 0 if self.held_out is None else int(self.held_out.mean(dim=0).amax(dim=1).argmax())

    def seed_scores(self, index: int) -> list[float]:
        """Return each seed's test accuracy on a feature set."""
        return self.test[:, index, self.rates[index]].tolist()

    def score(self, index: int) -> tuple[float, float | None]:
        """Return mean and standard error of [`~AdamProbes.seed_scores`]."""
        return mean_and_stderr(self.seed_scores(index))

    def held_out_score(self, index: int) -> float | None:
        """Return the mean over seeds of the held-out accuracy; `None` if nothing was held out."""
        return None if self.held_out is None else float(self.held_out[:, index, self.rates[index]].mean())

    def tie_break(self, index: int) -> float:
        """Return 0: of feature sets with equal held-out accuracy the first is chosen."""
        return 0.0

    def folded(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first seed's probe as a linear layer, `(weight (K, C), bias (K,))`."""
        return self.probes.folded(0, index, self.rates[index])

    def describe(self, index: int) -> dict[str, Any]:
        """Describe how the probe of a feature set was trained."""
        settings, rate, n = self.settings, self.rates[index], self.num_train
        return {
            "batch_norm": "without affine" if settings.batch_norm else "none",
            "optimizer": "Adam",
            "weight_decay": 0.0,
            "learning_rate": settings.learning_rates(n)[rate],
            "learning_rates_tried": settings.learning_rates(n),
            "learning_rate_at_edge": settings.is_at_edge(rate),
            "max_lr_extensions": settings.max_lr_extensions,
            "schedule": "cosine",
            "batch_size": settings.batch_size_for(n),
            "epochs": settings.epochs,
        }


def score_probes(
    probes: LinearProbes, settings: ProbeSettings, held: Part | None, test: Part, num_train: int
) -> AdamProbes:
    """Score trained probes on the held-out examples, which choose among them, and on the test set.

    Args:
        probes ([`LinearProbes`]): Trained without the held-out examples.
        settings ([`ProbeSettings`]): How they were trained.
        held (`tuple`, *optional*): Features `(h, F, C)` and classes `(h,)` of the held-out examples; `None` where
            there is one feature set and one learning rate.
        test (`tuple`): Those of the test set.
        num_train (`int`): Number of training examples.

    Raises:
        ValueError: If there are several probes and nothing to choose by, or nothing to score on.
    """
    count = probes.weight.shape[1] * probes.weight.shape[2]
    if held is None and count > 1:
        raise ValueError(f"held=None, but there are {count} probes to a seed; hold out examples.")
    return AdamProbes(
        settings, probes, None if held is None else probes.accuracies(*held), probes.accuracies(*test), num_train
    )


def train_adam_probes(
    epoch_features: Callable[[int], torch.Tensor | Rows],
    labels: torch.Tensor,
    held: Part | None,
    test: Part,
    *,
    settings: ProbeSettings,
    **options: Any,
) -> AdamProbes:
    """Train probes at every learning rate, and at further ones while held-out examples choose one at the edge.

    A grid of one rate is taken as given. Otherwise a rate a factor of 10 beyond the edge is added, at most
    `settings.max_lr_extensions` times at either end; only the probes of the added rate are trained, since no probe
    affects another. The result's settings have all rates tried, in rising order where some were added; a warning says
    so where a chosen rate is still at the edge.

    `held` and `test` are as in [`score_probes`], the other arguments as in [`train_linear_probes`].
    """
    n = len(labels)
    probes = train_linear_probes(epoch_features, labels, settings=settings, **options)
    found = score_probes(probes, settings, held, test, n)
    extends = held is not None and len(settings.lr_multipliers) > 1 and settings.max_lr_extensions > 0
    left: dict[Any, int] = dict.fromkeys((max, min), settings.max_lr_extensions)  # at the upper and the lower end
    while extends:
        rates = settings.lr_multipliers
        chosen = {rates[index] for index in found.rates}
        ends = [end for end in left if end(rates) in chosen and left[end]]
        if not ends:
            break
        for end in ends:
            left[end] -= 1
        added = tuple(end(rates) * EXTENSION if end is max else end(rates) / EXTENSION for end in ends)
        more = train_linear_probes(epoch_features, labels, settings=replace(settings, lr_multipliers=added), **options)
        every = (*rates, *added)
        order = sorted(range(len(every)), key=lambda i: every[i])
        settings = replace(settings, lr_multipliers=tuple(every[i] for i in order))
        probes = replace(
            probes,
            weight=torch.cat([probes.weight, more.weight], dim=2)[:, :, order],
            bias=torch.cat([probes.bias, more.bias], dim=2)[:, :, order],
        )
        found = score_probes(probes, settings, held, test, n)
    at_edge = sum(settings.is_at_edge(rate) for rate in found.rates)
    if extends and at_edge:
        warnings.warn(
            f"the learning rate of {at_edge} of {len(found.rates)} feature sets is at the edge of its grid, "
            f"lr_multipliers={settings.lr_multipliers}, which was extended "
            f"max_lr_extensions={settings.max_lr_extensions} times: these probes have not "
            "converged. Use the logistic probe, or more epochs.",
            stacklevel=2,
        )
    return found
