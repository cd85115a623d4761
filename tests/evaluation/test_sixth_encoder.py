"""An encoder written by a user goes through everything that measures."""

import torch

from ldae.data import iterate_once
from ldae.evaluation import Evaluation
from ldae.evaluation.alignment import measure_alignment
from ldae.evaluation.comparison import FEW_SHOT, compare_baselines
from ldae.evaluation.criteria import score_cells
from ldae.evaluation.encoder import Encoder
from ldae.evaluation.features import extract_features
from ldae.evaluation.images import ImageSet, fixed_subset
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.probing import run_probe
from ldae.evaluation.protocol import Protocol
from ldae.evaluation.search import best_score, grid_scores, search_features
from ldae.extraction.reader import FeatureReader
from ldae.models.randomness_ldae import keyed_normal


class RandomConvolutions(Encoder):
    """Two random convolutions, read after each, of images with noise that grows with t."""

    name, image_size, pooling = "random convolutions", 16, "mean over space"
    feature_layers = {1: (8, 8, 8), 2: (16, 4, 4)}
    default_layer, default_timestep, num_train_timesteps = 2, 0, 8

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.kernels = [torch.randn(o, i, 4, 4, generator=generator) / 4 for i, o in ((3, 8), (8, 16))]

    def features(self, pixel_values, layers=None, timesteps=None, noise=None, pool="mean"):
        layers, timesteps = self.choices(layers, timesteps)
        found = {layer: [] for layer in layers}
        for t in timesteps:
            x = pixel_values if noise is None else pixel_values + t / 8 * noise
            for layer, kernel in enumerate(self.kernels, start=1):
                x = torch.nn.functional.conv2d(x, kernel, stride=2, padding=1).relu()
                if layer in layers:
                    found[layer].append(x.mean(dim=(2, 3)) if pool == "mean" else x)
        return {layer: torch.stack(values) for layer, values in found.items()}

    def draw_noise(self, pixel_values, positions, seed):
        return keyed_normal(seed, 1, positions, pixel_values[0].numel()).view(pixel_values.shape)

    def untrained(self, seed, *, random_gates=True):
        return RandomConvolutions(seed + 1)


def test_it_goes_through_every_measurement(digits, few_digits):
    encoder = RandomConvolutions()
    sources = [fixed_subset(source, 200, 0) for source in digits]
    batches = [list(iterate_once(source, image_size=16, batch_size=100)) for source in sources]
    settings = ProbeSettings(epochs=2, seeds=(0,))
    grid = Protocol("cached", layers=(1, 2), timesteps=(0, 4), noisy=True, settings=settings)
    for probe in ("ridge", "logistic", "adam"):
        result = run_probe(encoder, *sources, grid, probe)
        assert result.columns == [(1, 0), (1, 4), (2, 0), (2, 4)]
        assert best_score(grid_scores([result])).held_out > 0.1
        assert result.result(0, dataset="digits", split="test").protocol["pooling"] == "mean over space"
    paper = run_probe(encoder, *sources, Protocol(settings=settings))
    assert paper.columns == [(2, 0)]
    search = search_features(encoder, *batches, shots=3, draws=2)
    assert search.columns[search.paper] == (2, 0)
    names = [each.name for each in compare_baselines(encoder, *batches, FEW_SHOT, draws=2)]
    assert names == ["trained encoder", "untrained encoder", "raw pixels"]
    images = ImageSet(sources[1], image_size=16)
    scores = measure_alignment(encoder, images, layers=[1, 2], timesteps=[1, 7])
    assert len(scores) == 4 and scores[0].alignment < scores[1].alignment
    assert score_cells(encoder, batches[0], ["rankme"], layers=[1, 2], timesteps=[0])["rankme"].shape == (2, 1)
    table = Evaluation(str(few_digits)).compare(encoder, untrained=True, metrics=("few_shot", "knn"), draws=2)
    assert list(table.scores) == [encoder.name, f"{encoder.name}, untrained", "raw pixels, 16 x 16"]
    reader = FeatureReader(encoder, torch.zeros(1, 3, 16, 16), layers=[1, 2], pool="none", noisy=True, timesteps=[3])
    read = reader(torch.zeros(2, 3, 16, 16), torch.arange(2))
    assert read["features_layer1_t3"].shape == (2, 8, 8, 8)
    assert extract_features(encoder, batches[0], layers=[1, 2]).values.shape == (200, 2, 1, 16)
