"""The cache of latents: its content, writing by several processes, resuming, refusals, reading."""

import json
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ldae import LDAEConfig
from ldae.data import (
    DataConfig,
    ImageLoader,
    cache_latents,
    check_disjoint,
    hash_images,
    iterate_once,
    open_images,
    open_latents,
    prepare_images,
    prepare_latents,
)
from ldae.models.corruption_ldae import noise_schedule_tables
from ldae.models.tokenizer_ldae import build_tokenizer
from ldae.shards import ShardFolder
from tests.data.image_files import encode, random_pixels


VAE = {"block_out_channels": [4, 4], "layers_per_block": 1, "latent_channels": 2, "norm_num_groups": 2}


def write_images(folder, count, broken=()):
    """Write random 4 x 4 images, none its own mirror image, with labels; those in `broken` cannot be read."""
    folder.mkdir()
    images = [
        {"bytes": b"broken" if i in broken else encode(Image.fromarray(random_pixels(4, 4, seed=i))), "path": None}
        for i in range(count)
    ]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(images, kind), "label": pa.array([i % 10 for i in range(count)], pa.int64())})
    pq.write_table(table, folder / "train.parquet")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def make_tokenizer(seed=0, image_size=4):
    """Images of 4 x 4 pixels to N = 4 latents of d = 2, of unit variance for random images."""
    torch.manual_seed(seed)
    config = LDAEConfig(
        image_size=image_size,
        patch_size=2,
        latent_tokenizer="conv_vae",
        conv_vae_config=VAE,
        latent_dim=2,
        input_space="latent",
        prediction_target="latent",
    )
    tokenizer = build_tokenizer(config)
    latents = tokenizer.unscaled_latents(torch.rand(64, 3, 4, 4) * 2 - 1).detach()
    tokenizer.mean.copy_(latents.mean(dim=(0, 1)))
    tokenizer.explained_variance.copy_(latents.var(dim=(0, 1)))
    tokenizer.fitted.fill_(True)
    return tokenizer


def write(source, folder, tokenizer=None, **options):
    """In shards of 5 rows, in batches of 3."""
    options = {"image_size": 4, "horizontal_flip": True, "batch_size": 3, "rows_per_shard": 5, **options}
    return cache_latents(tokenizer or make_tokenizer(), source, folder, **options)


def make_loader(source, *, micro=4, rank=0, world=1, workers=0, start=None):
    sizes = {"image_size": 4, "num_channels": 3, "micro_batch_size": micro, "total_batch_size": 8}
    config = DataConfig("unused", num_workers=workers)
    return ImageLoader(source, config, **sizes, rank=rank, world_size=world, seed=0, start=start)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("flip", [True, False])
def test_the_cache_gives_what_encoding_each_batch_gives(tmp_path, workers, flip):
    source = open_images(DataConfig(str(write_images(tmp_path / "rows", 17, broken=(3, 4, 12)))))
    tokenizer = make_tokenizer()
    counts = write(source, tmp_path / "latents", tokenizer, horizontal_flip=flip, num_workers=workers)
    assert counts == Counter({"skipped not an image": 3})
    images = make_loader(source, workers=workers)
    cached = make_loader(open_latents(tmp_path / "latents", source), workers=workers)
    flips = 0
    for _ in range(12):  # 48 positions, more than two epochs of 17
        batch, stored = next(images), next(cached)
        assert stored.images is None and stored.latents.dtype == torch.float16
        assert torch.equal(stored.positions, batch.positions) and torch.equal(stored.labels, batch.labels)
        pixels = prepare_images(batch.images, batch.positions, 7, image_size=4, horizontal_flip=flip)
        plain = prepare_images(batch.images, batch.positions, 7, image_size=4)
        flips += int((pixels != plain).flatten(1).any(dim=1).sum())
        expected = tokenizer.encode_images(pixels)
        found = prepare_latents(stored.latents, stored.positions, 7, horizontal_flip=flip)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert 12 < flips < 36 if flip else flips == 0
    assert cached.counts == {"skipped unreadable when cached": 3}
    images.close(), cached.close()


def test_flips_are_those_of_the_images():
    positions = torch.arange(200)
    images = torch.zeros(200, 1, 2, 2, dtype=torch.uint8)
    images[..., 1] = 255
    latents = torch.tensor([-1.0, 1.0]).expand(200, 2)[:, :, None, None]  # top left pixel, mirrored or not
    pixels = prepare_images(images, positions, 3, image_size=2, horizontal_flip=True)[:, 0, 0, 0]
    found = prepare_latents(latents, positions, 3, horizontal_flip=True).flatten()
    assert torch.equal(found, pixels) and 80 < (found > 0).sum() < 120
    assert torch.equal(prepare_latents(latents, positions, 3).flatten(), torch.full((200,), -1.0))


def test_reading_goes_on_exactly_also_where_images_were_read_before(tmp_path):
    source = open_images(DataConfig(str(write_images(tmp_path / "rows", 17, broken=(2,)))))
    write(source, tmp_path / "latents")
    cached = open_latents(tmp_path / "latents", source)
    whole = make_loader(cached)
    expected = [next(whole) for _ in range(10)]
    for first in (cached, source):
        begun = make_loader(first)
        for _ in range(4):
            next(begun)
        rest = make_loader(cached, start=json.loads(json.dumps(begun.state_dict())))
        for batch in expected[4:]:
            found = next(rest)
            assert torch.equal(found.positions, batch.positions) and torch.equal(found.latents, batch.latents)


def test_it_is_a_data_set_in_the_order_of_the_source(tmp_path):
    source = open_images(DataConfig(str(write_images(tmp_path / "rows", 17))))
    write(source, tmp_path / "latents", dtype="float32")
    found = datasets.load_from_disk(str(tmp_path / "latents"))
    assert found["row"][:] == list(range(17)) and found["label"][:] == [i % 10 for i in range(17)]
    tokenizer, pixels = make_tokenizer(), make_pixels(source)
    latents = found.with_format("torch")["latents"][:]  # (17, 2, 4, 2)
    torch.testing.assert_close(latents[:, 0], tokenizer.encode_images(pixels))
    torch.testing.assert_close(latents[:, 1], tokenizer.encode_images(pixels.flip(-1)))
    assert not torch.equal(latents[:, 0], latents[:, 1])
    files = open_latents(tmp_path / "latents", source).dataset.cache_files  # memory-mapped, not copied
    assert [file["filename"] for file in files] == [str(p) for p in sorted((tmp_path / "latents").glob("*.arrow"))]


def make_pixels(source):
    """All images in the source's order."""
    batches = list(iterate_once(source, image_size=4, batch_size=32))
    return torch.cat([prepare_images(batch.images, batch.positions, 0, image_size=4) for batch in batches])


def test_a_source_without_labels(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(encode(Image.fromarray(random_pixels(4, 4, seed=i))))
    source = open_images(DataConfig(str(folder)))
    write(source, tmp_path / "latents")
    assert next(make_loader(open_latents(tmp_path / "latents", source))).labels is None


class StopError(Exception):
    pass


def test_a_stopped_start_goes_on_with_other_processes_to_the_same_bytes(tmp_path):
    source = open_images(DataConfig(str(write_images(tmp_path / "rows", 33, broken=(9,)))))
    write(source, tmp_path / "whole")
    done = 0

    def stop(rows):
        nonlocal done
        done += rows
        if done > 12:
            raise StopError  # inside the third shard of seven

    parts = tmp_path / "parts"
    with pytest.raises(StopError):
        write(source, parts, on_rows=stop)
    first = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.arrow")}
    assert sorted(first) == ["data-00000-of-00007.arrow", "data-00001-of-00007.arrow"]
    with pytest.raises(ValueError, match="is not complete"):
        open_latents(parts, source)
    (parts / ".data-00002-of-00007.arrow.0123abcd").write_bytes(b"cut")  # what a kill leaves
    write(source, parts, rank=1, world_size=3)
    with pytest.raises(ValueError, match="is not complete"):
        open_latents(parts, source)
    for rank in (2, 0):
        write(source, parts, rank=rank, world_size=3)
    assert {name: (parts / name).stat().st_mtime_ns for name in first} == first
    assert contents(parts) == contents(tmp_path / "whole")
    assert open_latents(parts, source).dataset["row"].to_pylist() == list(range(33))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_finished_cache_is_left_alone(tmp_path):
    source = open_images(DataConfig(str(write_images(tmp_path / "rows", 7))))
    write(source, tmp_path / "latents")
    before = contents(tmp_path / "latents")
    assert write(source, tmp_path / "latents", on_rows=lambda rows: pytest.fail("encoded again")) == Counter()
    assert contents(tmp_path / "latents") == before


def test_a_stale_cache_is_refused_and_what_differs_is_named(tmp_path):
    source = open_images(DataConfig(str(write_images(tmp_path / "rows", 17))))
    folder = tmp_path / "latents"
    write(source, folder)
    before = contents(folder)
    other = open_images(DataConfig(str(write_images(tmp_path / "other", 17, broken=(11,)))))
    more = open_images(DataConfig(str(write_images(tmp_path / "more", 18))))
    rescaled = make_tokenizer()
    rescaled.explained_variance.mul_(2)
    reset = make_tokenizer()
    reset.latent_scaling = "none"
    for options, message in [
        ({"tokenizer": make_tokenizer(seed=1)}, r"\(tokenizer was \w{16} and is \w{16}\)"),
        ({"tokenizer": rescaled}, r"\(tokenizer was"),
        ({"tokenizer": reset}, r"\(tokenizer was"),
        ({"source": other}, r"\(images was \w{16} and is \w{16}\)"),
        ({"source": more}, "rows was 17 and is 18"),
        ({"image_size": 2}, "image_size was 4 and is 2"),
        ({"decode_size": 6}, r"\(decode_size was 4 and is 6\)"),
        ({"horizontal_flip": False}, r"\(shape was \[2, 4, 2\] and is \[1, 4, 2\]\)"),
        ({"dtype": "float32"}, r"\(dtype was float16 and is float32\)"),
        ({"rows_per_shard": 6}, r"\(rows_per_shard was 5 and is 6\)"),
    ]:
        with pytest.raises(ValueError, match=f"holds latents with other settings .*{message}"):
            write(**{"source": source, "folder": folder, **options})
    assert contents(folder) == before
    moved = open_images(DataConfig(str((tmp_path / "rows").rename(tmp_path / "moved"))))
    assert write(moved, folder) == Counter()  # the same images at another place


def test_processes_that_claim_a_folder_at_one_moment_share_it(tmp_path, monkeypatch):
    first, other = (ShardFolder(tmp_path, "latent_cache", "latents", "latents.json") for _ in range(2))
    looked, look = [], ShardFolder.identity

    def late(folder):
        found = look(folder)
        if not looked:  # the other process writes the file after this one has looked for it
            looked.append(found)
            other.claim({"rows": 3}, {})
        return found

    monkeypatch.setattr(ShardFolder, "identity", late)
    first.claim({"rows": 3}, {})
    assert looked == [None]


def test_what_cannot_be_cached_is_refused(tmp_path):
    rows = str(write_images(tmp_path / "rows", 7))
    with pytest.raises(ValueError, match=r"is streamed.*data\.streaming=false"):
        write(open_images(DataConfig(rows, streaming=True)), tmp_path / "latents")
    unfitted = make_tokenizer()
    unfitted.fitted.fill_(False)
    source = open_images(DataConfig(rows))
    with pytest.raises(ValueError, match="is not fitted"):
        write(source, tmp_path / "latents", unfitted)
    with pytest.raises(ValueError, match=r"holds other files \(train.parquet\); give an empty folder"):
        write(source, tmp_path / "rows")
    with pytest.raises(ValueError, match="is not complete"):
        open_latents(tmp_path / "latents", source)


def test_half_precision_is_far_below_the_first_noise_levels():
    latents = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    error = (latents.half().float() - latents).square().mean().sqrt().item()
    assert 1e-4 < error < 2.5e-4
    for schedule, factor in (("linear_beta", 40), ("linear_gamma2", 120)):
        assert noise_schedule_tables(LDAEConfig(noise_schedule=schedule))[1][0] > factor * error


def test_processes_that_read_the_same_latents_are_found(tmp_path):
    source = open_images(DataConfig(str(write_images(tmp_path / "rows", 17))))
    write(source, tmp_path / "latents")
    cached = open_latents(tmp_path / "latents", source)
    first, second = (next(make_loader(cached, rank=rank, world=2)) for rank in range(2))
    check_disjoint(first, lambda hashes: torch.cat([hashes, other_hashes(second)]), num_examples=17)
    with pytest.raises(ValueError, match="processes 0 and 1 read the same images"):
        check_disjoint(first, lambda hashes: torch.cat([hashes, hashes]), num_examples=17)


def other_hashes(batch):
    return hash_images(batch.latents)
