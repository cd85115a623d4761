"""Figure of noise-conditional classification: accuracy against the noise level."""

from collections.abc import Sequence

from matplotlib.figure import Figure


def noise_curves(
    curves: dict[str, list[tuple[float, float | None]]],
    timesteps: Sequence[int],
    levels: Sequence[float],
    chance: float,
) -> Figure:
    """Draw accuracy in percent by time step, with a line and standard errors for each kind of classifier.

    Args:
        curves (`dict`): Mean and standard error at each time step, by the classifier's name.
        timesteps (`Sequence[int]`): The time steps.
        levels (`Sequence[float]`): sigma_t / gamma_t at each time step, for the upper axis.
        chance (`float`): Accuracy of guessing.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, scores in curves.items():
        errors = [0 if stderr is None else 100 * stderr for _, stderr in scores]
        axes.errorbar(timesteps, [100 * mean for mean, _ in scores], yerr=errors, marker="o", markersize=4, label=name)
    axes.axhline(100 * chance, color="gray", linestyle=":", label="chance")
    axes.set(xlabel="time step t", ylabel="test accuracy in %", ylim=(0, 102))
    axes.legend(frameon=False, fontsize=8)
    above = axes.secondary_xaxis("top")
    above.set_xticks(list(timesteps), [f"{level:.2g}" for level in levels], fontsize=7, rotation=45)
    above.set_xlabel(r"noise over signal, $\sigma_t / \gamma_t$", fontsize=8)
    return figure
