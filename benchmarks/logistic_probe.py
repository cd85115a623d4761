"""Compare a converged logistic probe with Adam's linear probe, on 45,000 ill-conditioned features in 10 classes.

Ours is `fit_logistic_grid`: 10 penalties, each solved to a relative gradient of 3e-4, with a tenth of the examples
held out to choose one, and a last fit to all. The peer is the probe that it replaces: 30 epochs of Adam at three
learning rates, one seed, scored on the same examples. The features are 128 directions whose scales fall from 1 to
1e-3, and the classes depend equally on all of them. Target: at most twice the peer's time, a ratio of 0.5. The
training loss is compared with the same objective solved a hundred times more exactly, and printed with that of Adam.

    python benchmarks/logistic_probe.py [--pairs N] [--images N]
"""

import argparse

import torch
from harness import Comparison, compare
from torch.nn import functional as F

from ldae.evaluation.linear_probe import AdamProbes, ProbeSettings, train_adam_probes
from ldae.evaluation.logistic import TOLERANCE, LogisticProbes, fit_logistic_grid


IMAGES, WIDTH, CLASSES = 45_000, 128, 10
SETTINGS = ProbeSettings(epochs=30, lr_multipliers=(1.0, 10.0, 100.0), seeds=(0,))
PAIRS = 6


def make_features(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Draw fitted, held-out and test features `(n, 1, 128)` with classes."""
    generator = torch.Generator().manual_seed(0)
    total = n + n // 5
    hidden = torch.randn(total, WIDTH, generator=generator)
    scores = hidden @ torch.randn(WIDTH, CLASSES, generator=generator) / WIDTH**0.5
    y = (scores + 0.7 * torch.randn(total, CLASSES, generator=generator)).argmax(dim=1)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
    x = ((hidden * torch.logspace(0, -3, WIDTH)) @ rotation)[:, None]
    held, fitted = n // 10, n - n // 10
    return [(x[part], y[part]) for part in torch.arange(total).split([fitted, held, total - n])]


def run(pairs: int | None = None, images: int = IMAGES) -> list[Comparison]:
    """Compare the times, and print how far each is from the optimum."""
    fitted, held, test = make_features(images)
    found: dict[str, LogisticProbes] = {}
    adam: dict[str, AdamProbes] = {}

    def ours() -> None:
        found["probes"] = fit_logistic_grid(fitted, held, test, num_classes=CLASSES)

    def peer() -> None:
        adam["probes"] = train_adam_probes(
            lambda epoch: fitted[0], fitted[1], held, test, num_classes=CLASSES, settings=SETTINGS
        )

    result = compare(f"logistic probe, {images} x {WIDTH}", ours, peer, pairs=pairs or PAIRS, target=0.5)
    probes = found["probes"]
    penalty = float(probes.penalty[0])
    closer = fit_logistic_grid(
        fitted, held, test, num_classes=CLASSES, penalties=[penalty], tolerance=TOLERANCE / 100, max_iterations=1000
    )
    weight, bias = adam["probes"].folded(0)
    print(
        f"logistic probe: loss {float(probes.loss[0]):.5f}, {float(probes.loss[0] - closer.loss[0]):.1e} above the "
        f"optimum at penalty {penalty:g}; test accuracy {float(probes.test[0]):.2%}; Adam's loss "
        f"{float(F.cross_entropy(F.linear(fitted[0][:, 0], weight, bias), fitted[1])):.5f}, test accuracy "
        f"{adam['probes'].score(0)[0]:.2%}",
        flush=True,
    )
    return [result]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="timed pairs")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"examples (default: {IMAGES})")
    arguments = parser.parse_args()
    run(arguments.pairs, arguments.images)
