"""The learning rate of Adam's linear probes: a grid that grows until what was chosen lies inside it."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch

from .feature_store import Rows
from .grid_probes import Part
from .linear_probe import LinearProbes, ProbeReport, ProbeSettings, score_probes


MAX_LR_EXTENSIONS = 3  # of either end, by the verbs
EXTENSION = 10.0  # factor between the edge of the grid and the rate that is added beyond it


def search_rates(
    train: Callable[[ProbeSettings], LinearProbes],
    settings: ProbeSettings,
    choice: Part | None,
    test_features: torch.Tensor | Rows,
    test_labels: torch.Tensor,
) -> tuple[ProbeSettings, LinearProbes, ProbeReport]:
    """Train probes at every learning rate, and at further ones while held-out examples choose a rate at the grid's
    edge.

    A grid of one rate is taken as given. Otherwise a rate a factor of 10 beyond the edge is added, at most
    `settings.max_lr_extensions` times at either end; only the probes of the added rate are trained, since no probe
    affects another.

    Args:
        train (`Callable`): From settings to trained probes.
        settings ([`~ldae.evaluation.linear_probe.ProbeSettings`]): The first grid, and how far it may grow.
        choice (`tuple`, *optional*): Features and classes of the held-out examples.
        test_features, test_labels: As of [`~ldae.evaluation.linear_probe.score_probes`].

    Returns:
        `(settings, probes, report)`; the settings have all rates tried, in rising order where some were added. A
        warning says so where a chosen rate is still at the edge.
    """
    probes = train(settings)
    report = score_probes(probes, choice, test_features, test_labels)
    if choice is None or len(settings.lr_multipliers) == 1 or settings.max_lr_extensions == 0:
        return settings, probes, report
    left = {True: settings.max_lr_extensions, False: settings.max_lr_extensions}  # at the upper and the lower end
    while True:
        rates = settings.lr_multipliers
        chosen = {rates[index] for index in report.lr_index}
        ends = [upper for upper, edge in ((True, max(rates)), (False, min(rates))) if edge in chosen and left[upper]]
        if not ends:
            break
        added = []
        for upper in ends:
            left[upper] -= 1
            added.append(max(rates) * EXTENSION if upper else min(rates) / EXTENSION)
        more = train(replace(settings, lr_multipliers=tuple(added)))
        every = (*rates, *added)
        order = sorted(range(len(every)), key=lambda i: every[i])
        settings = replace(settings, lr_multipliers=tuple(every[i] for i in order))
        probes = replace(
            probes,
            weight=torch.cat([probes.weight, more.weight], dim=2)[:, :, order],
            bias=torch.cat([probes.bias, more.bias], dim=2)[:, :, order],
        )
        report = score_probes(probes, choice, test_features, test_labels)
    at_edge = [index for index, rate in enumerate(report.lr_index) if is_at_edge(settings, rate)]
    if at_edge:
        warnings.warn(
            f"the learning rate of {len(at_edge)} of {len(report.lr_index)} feature sets is at the edge of its grid, "
            f"lr_multipliers={settings.lr_multipliers}, which was extended "
            f"max_lr_extensions={settings.max_lr_extensions} times: these probes have not "
            "converged. Use the logistic probe, or more epochs.",
            stacklevel=3,
        )
    return settings, probes, report


def is_at_edge(settings: ProbeSettings, rate_index: int) -> bool:
    """Tell whether a chosen rate is the smallest or the largest of several."""
    rates = settings.lr_multipliers
    return len(rates) > 1 and rates[rate_index] in (min(rates), max(rates))
