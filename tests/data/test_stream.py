import json
import logging
import signal
import subprocess

import pytest

from ldae.data import DataConfig, ImageLoader, open_images
from tests.data.image_files import numbers, write_parquet, write_tars


def make_loader(folder, *, micro=4, total=None, rank=0, world=1, workers=0, seed=0, window=6, start=None):
    config = DataConfig(str(folder), streaming=True, num_workers=workers, shuffle_window=window)
    return ImageLoader(
        open_images(config),
        config,
        image_size=4,
        num_channels=3,
        micro_batch_size=micro,
        total_batch_size=total or micro * world,
        rank=rank,
        world_size=world,
        seed=seed,
        start=start,
    )


def read(loader, batches):
    found = []
    for _ in range(batches):
        batch = next(loader)
        assert batch.labels.tolist() == [number % 10 for number in numbers(batch.images)]
        found.append((batch.positions.tolist(), numbers(batch.images)))
    return found


SOURCES = {
    "parquet": lambda folder: write_parquet(folder, [11, 9, 13, 8], broken=(2, 3, 19, 32, 40)),
    "tar": lambda folder: write_tars(folder, [11, 9, 13, 8]),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resume_is_exact_again_and_again_across_epochs(tmp_path, kind, workers):
    folder = SOURCES[kind](tmp_path / "rows")
    whole = read(make_loader(folder, workers=workers), 30)  # 120 examples, three epochs
    for every in (1, 7) if workers == 0 else (7,):
        found, loader = [], make_loader(folder, workers=workers)
        while len(found) < 30:
            found += read(loader, min(every, 30 - len(found)))
            state = json.loads(json.dumps(loader.state_dict()))
            loader.close()
            loader = make_loader(folder, workers=workers, start=state)
        assert found == whole
        assert loader.counts == ({"skipped not an image": 5} if kind == "parquet" else {})
        loader.close()


def test_a_loader_tells_when_its_stream_was_too_short_for_the_first_batch(tmp_path):
    folder = write_parquet(tmp_path / "rows", [4, 4])
    for micro, again in ((4, False), (8, True)):
        loaders = [make_loader(folder, micro=micro, rank=rank, world=2, seed=3) for rank in range(2)]
        batches = [numbers(next(loader).images) for loader in loaders]
        assert [loader.begins_again for loader in loaders] == [again, again]
        assert bool(set(batches[0]) & set(batches[1])) == again


def test_close_goes_on_with_new_workers(tmp_path):
    folder = write_parquet(tmp_path / "rows", [20, 20])
    loader = make_loader(folder, workers=2)
    found = read(loader, 5)  # an odd number: the other worker is next
    loader.close()
    assert found + read(loader, 6) == read(make_loader(folder, workers=2), 11)


def test_resume_with_another_micro_batch_at_the_end_of_a_step(tmp_path):
    folder = write_parquet(tmp_path / "rows", [11, 9])
    whole = read(make_loader(folder, micro=8), 6)
    loader = make_loader(folder, micro=8)
    found = read(loader, 3)
    for positions, images in read(make_loader(folder, micro=2, total=8, start=loader.state_dict()), 12):
        if positions[0] % 8 == 0:
            found.append(([], []))
        found[-1] = (found[-1][0] + positions, found[-1][1] + images)
    assert found == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 2}, "num_workers was 1 and is 2"),
        ({"world": 2}, "world_size was 1 and is 2"),
        ({"window": 9}, "shuffle_window was 6 and is 9"),
        ({"seed": 3}, "seed was 0 and is 3"),
    ],
)
def test_resume_with_another_order_is_refused_with_the_remedy(tmp_path, change, message):
    folder = write_parquet(tmp_path / "rows", [6, 6])
    loader = make_loader(folder)
    read(loader, 2)
    with pytest.raises(ValueError, match=rf"{message}.*data\.streaming=false"):
        make_loader(folder, start=loader.state_dict(), **change)


@pytest.mark.parametrize("sizes", [[16, 16, 16, 16], [16, 24, 24], [64]], ids=["divisible", "three", "one"])
@pytest.mark.parametrize(("world", "workers"), [(2, 0), (2, 2), (4, 0)])
def test_processes_and_workers_are_disjoint_and_complete(tmp_path, sizes, world, workers):
    folder = write_parquet(tmp_path / "rows", sizes)
    seen, positions = [], []
    for rank in range(world):
        loader = make_loader(folder, rank=rank, world=world, workers=workers, micro=4)
        states = []
        while True:
            batch = read(loader, 1)[0]
            state = loader.state_dict()["workers"]
            if any(worker["epoch"] for worker in state):
                break
            seen += batch[1]
            positions += batch[0]
            states.append(state)
        loader.close()
        assert len(states) >= 64 // world // 4 // 2
    assert len(set(seen)) == len(seen)
    assert len(set(positions)) == len(positions)
    # every worker's stretch of the epoch is a multiple of the batch only where the shards are equal
    if workers == 0:
        assert sorted(seen) == list(range(64))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_epoch_has_every_row_once(tmp_path, world, num_workers):
    from ldae.data.stream import StreamPart

    source = open_images(DataConfig(str(write_parquet(tmp_path / "rows", [5, 9, 1, 7])), streaming=True))
    orders = []
    for epoch in range(3):
        rows = []
        for rank in range(world):
            for worker in range(num_workers):
                part = StreamPart(
                    source,
                    seed=0,
                    window_size=4,
                    rank=rank,
                    world_size=world,
                    worker=worker,
                    num_workers=num_workers,
                )
                windows = [window for _, _, window in part.windows(epoch, 0, 0)]
                assert all(len(window) == 4 for window in windows[:-1])
                rows += [record["bytes"] for window in windows for record, _ in window]
        assert len(rows) == len(set(rows)) == 22
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2]


def test_order_is_reproducible_and_shuffled(tmp_path):
    folder = write_parquet(tmp_path / "rows", [16, 16])
    first = read(make_loader(folder, micro=8), 8)
    assert first == read(make_loader(folder, micro=8), 8) != read(make_loader(folder, micro=8, seed=1), 8)
    epochs = [[number for _, images in first[i : i + 4] for number in images] for i in (0, 4)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(32))
    assert epochs[0] != epochs[1]
    inside = [i for i in epochs[0] if i < 16]
    assert inside != sorted(inside)


def test_positions_are_those_of_the_run(tmp_path):
    folder = write_parquet(tmp_path / "rows", [16, 16, 16, 16])
    found = []
    for rank in range(2):
        loader = make_loader(folder, micro=2, total=8, rank=rank, world=2, workers=2)
        found += [position for positions, _ in read(loader, 6) for position in positions]
        loader.close()
    assert sorted(found) == list(range(24))


def test_fewer_shards_than_workers_reads_with_fewer_and_says_what_helps(tmp_path, caplog):
    folder = write_parquet(tmp_path / "rows", [10, 10])
    with caplog.at_level(logging.WARNING, logger="ldae.data.loader"):
        loader = make_loader(folder, workers=4, world=2)
    assert "reading with 1 of 4 workers" in caplog.text and "at least 8 parquet" in caplog.text
    assert loader.state_dict()["identity"]["num_workers"] == 1
    assert read(loader, 3) == read(make_loader(folder, workers=0, world=2), 3)
    loader.close()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_main_process(tmp_path, sent):
    folder = write_parquet(tmp_path / "rows", [16, 16])
    loader = make_loader(folder, workers=2)
    first = read(loader, 2)  # one of each worker: both have started
    workers = [worker.pid for worker in loader._batches._workers]
    subprocess.run(["kill", f"-{int(sent)}", *map(str, workers)], check=True)  # another process, as a shell would
    assert first + read(loader, 30) == read(make_loader(folder, workers=2), 32)
    loader.close()
