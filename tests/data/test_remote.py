"""Data sets behind an address: folders, patterns and single files, streamed or not, and what is said of mistakes."""

import functools
import http.server
import threading
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from PIL import Image

from ldae.cli import main
from ldae.data import DataConfig, iterate_once, list_splits, open_images
from ldae.errors import explain
from ldae.places import find_data
from ldae.processes import make_accelerator
from ldae.remote import list_remote
from ldae.training.recipe import load_recipe
from ldae.training.tokenizer_fit import sample_images
from tests.data.image_files import encode, random_pixels


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # the server is on this machine
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Two files of four training images and one of two test images."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name, seeds in (("train-0", range(4)), ("train-1", range(4, 8)), ("test-0", range(8, 10))):
        files = [{"bytes": encode(Image.fromarray(random_pixels(12, 12, seed=i))), "path": None} for i in seeds]
        pq.write_table(pa.table({"image": pa.array(files)}), folder / f"{name}.parquet")
    return folder


@pytest.fixture
def bucket(local: Path) -> str:
    system = fsspec.filesystem("memory")
    system.put(str(local), "/bucket/images", recursive=True)
    yield "memory://bucket/images"
    system.rm("/bucket", recursive=True)


def test_the_name_of_the_folder_itself_makes_no_split(local: Path, bucket: str) -> None:
    system = fsspec.filesystem("memory")
    system.put_file(str(local / "train-0.parquet"), "/bucket/test/0.parquet")
    system.put_file(str(local / "train-0.parquet"), "/bucket/all/test/0.parquet")
    for folder, splits in (("test", ["train"]), ("all", ["test"]), ("test/0.parquet", ["train"])):
        assert list_splits(DataConfig(f"memory://bucket/{folder}")) == splits


@pytest.fixture
def server(local: Path) -> str:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=local)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pixels_of(dataset: str, split: str | None = None, **fields: object) -> list[bytes]:
    source = open_images(DataConfig(dataset, num_workers=0, **fields), split)
    return [
        image.numpy().tobytes()
        for batch in iterate_once(source, image_size=12, batch_size=4)
        for image in batch.images
    ]


def expected(seeds: range) -> list[bytes]:
    return [np.ascontiguousarray(random_pixels(12, 12, seed=i).transpose(2, 0, 1)).tobytes() for i in seeds]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_a_pattern_and_a_file_are_read(bucket: str, streaming: bool) -> None:
    assert pixels_of(bucket, streaming=streaming) == expected(range(8))
    assert pixels_of(bucket, "test", streaming=streaming) == expected(range(8, 10))
    assert pixels_of(f"{bucket}/train-*.parquet", streaming=streaming) == expected(range(8))
    assert pixels_of(f"{bucket}/test-0.parquet", "test", streaming=streaming) == expected(range(8, 10))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_web_server_is_read(server: str, streaming: bool) -> None:
    assert pixels_of(f"{server}/train-1.parquet", streaming=streaming) == expected(range(4, 8))


def test_pre_training_and_extraction_take_an_address(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset, run = f"{server}/train-1.parquet", str(tmp_path / "run")
    sizes = "--size nano --image_size 12 --patch_size 4 --latent_dim 8 --images 8 --total_batch_size 4 --num_workers 0"
    assert main(["pretrain", "--dataset", dataset, "--streaming", "true", "--output_dir", run, *sizes.split()]) == 0
    assert find_data(dataset, Path(run) / "recipe.yaml") == dataset
    table = str(tmp_path / "table")
    assert main(["extract_features", run, "--output_dir", table, "--num_workers", "0"]) == 0
    assert "4 rows" in capsys.readouterr().out


def test_mistakes_name_the_address_and_the_remedy(bucket: str) -> None:
    with pytest.raises(
        ValueError, match=r"'memory://bucket/nothing' holds no .parquet or .tar file; give the address"
    ):
        open_images(DataConfig("memory://bucket/nothing"))
    with pytest.raises(ValueError, match=r"'nosuch://bucket' cannot be opened; fsspec must know nosuch://"):
        open_images(DataConfig("nosuch://bucket"))
    with pytest.raises(ValueError, match=r"'http://127.0.0.1:9/a.parquet' (cannot be reached|holds no)"):
        open_images(DataConfig("http://127.0.0.1:9/a.parquet"))


@pytest.mark.parametrize(
    "address",
    [
        "https://me:hunter2@host/a.parquet",
        "https://me:x@hunter2@host/a.parquet",
        "https://host/a.parquet?X-Amz-Signature=hunter2",
        "s3://hunter2@bucket/a",
        "az://container/a.parquet?sv=1&sig=hunter2",
    ],
)
def test_addresses_with_credentials_are_refused_because_recipes_keep_them(address: str) -> None:
    with pytest.raises(ValueError, match="holds credentials, which would be kept in recipes and cards") as error:
        open_images(DataConfig(address))
    assert "hunter2" not in str(error.value)


class Refusing(AbstractFileSystem):
    """A file system that refuses everything, as clients of object stores do."""

    error: Exception = PermissionError("Forbidden")

    def isdir(self, path: str) -> bool:
        raise self.error


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (PermissionError("Forbidden"), "(PermissionError: Forbidden); set credentials in the environment: AWS_ACCESS"),
        (
            OSError("no answer from https://me:hunter2@h/a?Signature=hunter2"),
            "https://...@h/a?...); check the address, the",
        ),
        (
            ValueError("Invalid endpoint: x."),
            "(ValueError: Invalid endpoint: x); check the address, the endpoint (AWS",
        ),
    ],
)
def test_errors_of_a_client_name_the_remedy_and_hold_no_secret(
    error: Exception, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda _: (Refusing(), "bucket/images"))
    monkeypatch.setattr(Refusing, "error", error)
    assert main(["pretrain", "--dataset", "s3://bucket/images", "--output_dir", "run", "--size", "nano"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("ldae pretrain: data.dataset='s3://bucket/images' cannot be reached (")
    assert remedy in shown and "hunter2" not in shown and shown.count("\n") == 1


def test_an_address_with_credentials_is_refused_without_repeating_them() -> None:
    with pytest.raises(ValueError, match=r"^data.dataset='s3://...@bucket/a' holds credentials, .* AWS_PROFILE") as e:
        list_remote("s3://KEY:hunter2@bucket/a", (".parquet",))
    assert "hunter2" not in str(e.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_s3(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", no_s3)
    with pytest.raises(
        ValueError, match=r"s3://bucket/a' cannot be opened \(Install s3fs to access S3\); pip install s3fs"
    ):
        list_remote("s3://bucket/a", (".parquet",))


def test_a_short_stream_is_read_once_to_fit_the_tokenizer(bucket: str, tmp_path: Path) -> None:
    fields = {"dataset": f"{bucket}/train-0.parquet", "streaming": True, "num_workers": 0, "output_dir": str(tmp_path)}
    model = {"size": "nano", "image_size": 12, "patch_size": 4, "latent_dim": 8}
    recipe = load_recipe(None, {**fields, **model})
    drawn = list(sample_images(open_images(recipe.data), recipe, make_accelerator(cpu=True)))
    assert recipe.tokenizer.tokenizer_images > 1000 and sum(map(len, drawn)) == 64  # one batch


def test_errors_of_a_store_in_the_middle_of_the_work_are_one_line() -> None:
    failed = type("EndpointConnectionError", (Exception,), {"__module__": "botocore.exceptions"})
    line = explain(failed("Could not connect to https://host/bucket?X-Amz-Signature=hunter2."))
    assert line.startswith(
        "the network or the store failed (EndpointConnectionError: Could not connect to https://host"
    )
    assert line.endswith("; repeat the command.") and "hunter2" not in line
