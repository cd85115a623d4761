"""Images for a score: each a function of the seed and its number, in every division over processes and batches."""

import pytest
import torch

from ldae.evaluation.distances import ImageDistances
from ldae.evaluation.extractor import load_extractor
from ldae.evaluation.generation import Sampling, generate_images, generation_results, image_generator
from tests.pipelines.conftest import make_pipeline


@pytest.fixture
def pipe():
    return make_pipeline()


def generate(pipe, count, sampling, **share):
    batches = list(generate_images(pipe, count, sampling, **share))
    assert all(batch.images.dtype == torch.uint8 for batch in batches)
    images, positions = (torch.cat([getattr(b, name) for b in batches]) for name in ("images", "positions"))
    return images, positions


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_depends_on_the_seed_and_its_number_alone(pipe, eta):
    whole, numbers = generate(pipe, 10, Sampling(steps=3, eta=eta, batch_size=10))
    assert numbers.tolist() == list(range(10))
    small, _ = generate(pipe, 10, Sampling(steps=3, eta=eta, batch_size=3))
    shares = [generate(pipe, 10, Sampling(steps=3, eta=eta, batch_size=4), rank=r, world_size=3) for r in range(3)]
    numbers = torch.cat([positions for _, positions in shares])
    assert [positions.tolist() for _, positions in shares] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    shared = torch.cat([images for images, _ in shares])[numbers.argsort()]
    for other in (small, shared):  # one grey level, where a batch of another size rounded otherwise
        assert (whole.int() - other.int()).abs().max() <= 1
    assert len(whole.flatten(1).unique(dim=0)) == 10
    reseeded, _ = generate(pipe, 10, Sampling(steps=3, eta=eta, seed=1))
    assert (whole.float() - reseeded.float()).abs().mean() > 1


def test_no_two_images_of_a_run_share_a_generator():
    seeds = {image_generator(seed, i).initial_seed() for seed in range(20) for i in range(500)}
    assert len(seeds) == 20 * 500
    assert max(seeds) < 2**32
    state = image_generator(7, 3).get_state()
    assert torch.equal(state, image_generator(7, 3).get_state())
    assert not torch.equal(state, image_generator(7, 4).get_state())


def test_classes_come_in_turn():
    pipe = make_pipeline(target="noise", noise_schedule="linear_beta", num_class_embeds=3)
    labels = [b.labels for b in generate_images(pipe, 7, Sampling(steps=1, batch_size=4))]
    assert torch.cat(labels).tolist() == [0, 1, 2, 0, 1, 2, 0]
    labels = [b.labels for b in generate_images(pipe, 5, Sampling(steps=1, classes=(2, 0)), rank=1, world_size=2)]
    assert torch.cat(labels).tolist() == [0, 0]  # of the numbers 1 and 3
    (batch,) = generate_images(make_pipeline(), 2, Sampling(steps=1))
    assert batch.labels is None
    for classes, message in (((), "classes= is empty; leave it out"), ((1,), "classes=1 needs a class-conditional")):
        with pytest.raises(ValueError, match=message):
            next(iter(generate_images(make_pipeline(), 2, Sampling(steps=1, classes=classes))))


def test_a_process_may_have_no_share():
    shares = [list(generate_images(make_pipeline(), 2, Sampling(steps=1), rank=r, world_size=4)) for r in range(4)]
    assert [[batch.positions.tolist() for batch in share] for share in shares] == [[[0]], [[1]], [], []]


def test_results_say_all_that_a_score_depends_on(pipe, checkpoint):
    extractor = load_extractor(checkpoint)
    sampling = Sampling(steps=2, eta=1.0, seed=3)
    next(generate_images(pipe, 2, sampling))
    measured = ImageDistances(50_000, 1437, fid=2.5, kid=0.1, kid_std=0.01, kid_subset_size=1000)
    fid, kid = generation_results(measured, sampling, pipe, extractor, "ema", dataset="digits", split="test")
    assert (fid.metric, fid.value, fid.n, fid.seeds) == ("FID-50K", 2.5, 50_000, 3)
    assert fid.protocol == {
        "name": "generation",
        "extractor": "run (LDAEModel)",
        "extractor_weights": extractor.weights,
        "features": 32,
        "reference_images": 1437,
        "sampler": "ancestral",
        "eta": 1.0,
        "steps": 2,
        "guidance_scale": 1.0,
        "weights": "ema",
    }
    assert (kid.metric, kid.details["subset_std"], kid.protocol["subset_size"]) == ("KID-50K", 0.01, 1000)
    (only,) = generation_results(
        ImageDistances(360, 100, fid=1.0), sampling, pipe, extractor, "raw", dataset="digits", split="test"
    )
    assert only.metric == "FID-360"
