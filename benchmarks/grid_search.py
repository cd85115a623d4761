"""Compare a grid search over every block of the up path x 3 time steps with the sequential method.

The sequential method is that of DDAE's public code: in each of 15 epochs, for each batch and time step, it runs one
forward of the whole network, whose activations all taps share, and then for one classifier after another its forward,
its backward and a step of Adam; noise is drawn again each time. (A forward for each classifier would make it six times
as slow.) Ours is `ldae grid_search` with the `cached` protocol, from the data set to test accuracies; a tenth of the
training images is held out to choose the settings. Both train the same probes (BatchNorm without parameters, Adam at
1e-3 along a cosine) on the same noisy inputs, with and without random flips. Target: 10x.

Without flips, the default, ours computes features of 320 images and the sequential method of 15 x 256 + 64, which is
12.2 times as many. With flips, ours also computes mirror images in a second sweep: 7.1 times.

    python benchmarks/grid_search.py [--pairs N]
"""

import argparse
import math
from collections.abc import Callable

import torch
from diffusers import UNet2DModel
from harness import Comparison, compare
from torch import nn

from ldae import DDAEModel
from ldae.data import DataConfig, iterate_once, open_probe_images
from ldae.evaluation.images import fixed_subset
from ldae.evaluation.linear_probe import BN_EPS, ProbeSettings
from ldae.evaluation.probing import run_probe
from ldae.evaluation.protocol import Protocol
from ldae.models.taps_ddae import block_ends, record


TRAIN, TEST, SIZE = 256, 64, 16  # digits
EPOCHS, BATCH, RATE = 15, 64, 1e-3
TIMESTEPS = (1, 11, 21)
UNET = {
    "sample_size": SIZE,
    "block_out_channels": (16, 32),
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
PAIRS = 6


def sequential(
    unet: UNet2DModel, model: DDAEModel, taps: list[str], train: tuple, test: tuple, flip: bool, seed: int
) -> torch.Tensor:
    """Train classifiers one by one on new features in each epoch, and return test accuracies `(taps, timesteps)`."""
    (images, labels), (test_images, test_labels) = train, test
    generator = torch.Generator().manual_seed(seed)

    def features(x0: torch.Tensor, t: int) -> dict[str, torch.Tensor]:
        eps = torch.randn(x0.shape, generator=generator)
        xt = model.corruption(x0, eps, torch.tensor([t]))
        found: dict[str, torch.Tensor] = {}
        hooks = [
            unet.get_submodule(tap).register_forward_hook(
                lambda module, args, out, tap=tap: found.update({tap: out.mean(dim=(2, 3))})
            )
            for tap in taps
        ]
        with torch.no_grad():
            unet(xt, torch.full((len(xt),), t))
        for hook in hooks:
            hook.remove()
        return found

    torch.manual_seed(seed)
    steps = EPOCHS * math.ceil(len(images) / BATCH)
    classifiers, optimizers, schedules = {}, {}, {}
    for t in TIMESTEPS:
        for tap in taps:
            width = model.feature_layers[tap][0]
            linear = nn.Linear(width, 10)
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)
            norm = nn.BatchNorm1d(width, eps=BN_EPS, affine=False, momentum=None)
            classifiers[t, tap] = nn.Sequential(norm, linear)
            optimizers[t, tap] = torch.optim.Adam(linear.parameters(), lr=RATE)
            schedules[t, tap] = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[t, tap], steps)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            x0, y = images[index], labels[index]
            if flip:
                coin = torch.rand(len(x0), generator=generator) < 0.5
                x0 = torch.where(coin[:, None, None, None], x0.flip(-1), x0)
            for t in TIMESTEPS:
                found = features(x0, t)
                for tap in taps:
                    loss = nn.functional.cross_entropy(classifiers[t, tap](found[tap]), y)
                    optimizers[t, tap].zero_grad()
                    loss.backward()
                    optimizers[t, tap].step()
                    schedules[t, tap].step()
    hits = torch.zeros(len(taps), len(TIMESTEPS))
    for classifier in classifiers.values():
        classifier.eval()
    for begin in range(0, len(test_images), BATCH):
        x0, y = test_images[begin : begin + BATCH], test_labels[begin : begin + BATCH]
        for column, t in enumerate(TIMESTEPS):
            found = features(x0, t)
            for row, tap in enumerate(taps):
                with torch.no_grad():
                    hits[row, column] += (classifiers[t, tap](found[tap]).argmax(dim=1) == y).sum()
    return hits / len(test_images)


def run(pairs: int | None = None) -> list[Comparison]:
    """Compare without and with flips, and print both sides' accuracies."""
    torch.manual_seed(0)
    unet = UNet2DModel(**UNET).eval()
    model = DDAEModel.from_diffusers(unet, "last")
    taps = [tap for tap in block_ends(list(model.feature_layers)) if tap.startswith("up_blocks.")]
    # Both sides use the same features: those of the network with its initial weights.
    x = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        whole = record(unet, taps, lambda: unet(model.corruption(x, None, torch.tensor([11])), torch.full((2,), 11)))
        ours = model.features(x, taps, [11])
    assert all(torch.allclose(whole[tap].mean(dim=(2, 3)), ours[tap][0], atol=1e-5) for tap in taps)

    sources = [
        fixed_subset(s, n, 0) for s, n in zip(open_probe_images(DataConfig("digits")), (TRAIN, TEST), strict=True)
    ]
    batches = [next(iterate_once(source, image_size=SIZE, batch_size=10**6)) for source in sources]
    data = [(batch.images.float() / 127.5 - 1, batch.labels) for batch in batches]
    results = []
    for flip in (False, True):
        accuracies: dict[str, list[torch.Tensor]] = {"ours": [], "sequential": []}
        calls: dict[str, Callable[[], None]] = {
            "ours": lambda flip=flip, found=accuracies["ours"]: found.append(
                cached(model, taps, sources, flip, len(found))
            ),
            "sequential": lambda flip=flip, found=accuracies["sequential"]: found.append(
                sequential(unet, model, taps, *data, flip, len(found))
            ),
        }
        name = f"grid search, {len(taps)} taps x {len(TIMESTEPS)} t, {'with' if flip else 'without'} flips"
        results.append(compare(name, calls["ours"], calls["sequential"], pairs=pairs or PAIRS, target=10.0))
        means = {side: torch.stack(found).mean(dim=(1, 2)) for side, found in accuracies.items()}
        cells = {side: torch.stack(found).mean(dim=0) for side, found in accuracies.items()}
        print(
            f"{name}: accuracy over cells and seeds, ours {means['ours'].mean():.1%} (from seed to seed "
            f"{means['ours'].std():.1%}), sequential {means['sequential'].mean():.1%} "
            f"({means['sequential'].std():.1%}); "
            f"largest difference of a cell {(cells['ours'] - cells['sequential']).abs().max():.1%}, "
            f"one image is {1 / TEST:.1%}",
            flush=True,
        )
    return results


def cached(model: DDAEModel, taps: list[str], sources: list, flip: bool, seed: int) -> torch.Tensor:
    """Return test accuracies `(taps, timesteps)` of our grid search."""
    settings = ProbeSettings(EPOCHS, BATCH, base_lr=RATE * 256 / BATCH, lr_multipliers=(1.0,), seeds=(seed,))
    protocol = Protocol("cached", tuple(taps), TIMESTEPS, noisy=True, horizontal_flip=flip, settings=settings)
    result = run_probe(model, *sources, protocol)
    return torch.tensor([result.probes.score(index)[0] for index in range(len(result.columns))]).view(len(taps), -1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="timed pairs of every case")
    run(parser.parse_args().pairs)
