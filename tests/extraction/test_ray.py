"""Feature tables on a Ray cluster, and features in a user's own Ray pipeline.

Ray is not among the packages of the tests. The slow test installs it in a folder of its own.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ldae.cli import main
from ldae.data import DataConfig, open_images
from ldae.extraction.job import TableJob
from ldae.extraction.ray_engine import FeatureMapper, _plan, _ShardWriter
from ldae.extraction.reader import FeatureReader
from ldae.extraction.rows import model_input
from tests.data.image_files import encode, random_pixels, write_parquet
from tests.extraction.test_table import digests
from tests.models.small_models import draw_images


ROOT = Path(__file__).parents[2]
PACKAGES = """
    ray==2.60.0 jsonschema==4.26.0 jsonschema_specifications==2025.9.1 referencing==0.37.0 rpds-py==2026.9.1
    attrs==26.1.0 msgpack==1.2.4
""".split()
# Two machines with a core each, as far as Ray can tell. One actor is killed when the first shard is there.
ON_TWO_MACHINES = """
import os, subprocess, sys, time
from pathlib import Path
import psutil
from ray.cluster_utils import Cluster

folder, *command = sys.argv[1:]
here = os.getcwd()
os.chdir("/")  # as a cluster that was started elsewhere
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
os.chdir(here)
run = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster.address}, stdout=subprocess.PIPE, text=True)
while run.poll() is None and not list(Path(folder, "data").glob("[!.]*")):
    time.sleep(0.05)
actors = [one for one in psutil.process_iter(["cmdline"]) if (one.info["cmdline"] or [""])[0].startswith("ray::MapW")]
print("actors", len(actors))
actors[0].kill()
print(run.communicate()[0])
assert run.returncode == 0
cluster.shutdown()
"""
IN_A_PIPELINE = """
import sys
import numpy as np
import ray
from ldae.extraction.ray_engine import FeatureMapper

ray.init(num_cpus=2)
images = ray.data.read_images(sys.argv[2], include_paths=True)
rows = images.map_batches(FeatureMapper, fn_constructor_args=(sys.argv[1],), batch_size=4, concurrency=1).take_all()
np.save(sys.argv[3], np.stack([row["features"] for row in sorted(rows, key=lambda row: row["path"])]))
"""


@pytest.fixture
def pixels() -> list[np.ndarray]:
    return [random_pixels(16, 16, seed=i) for i in range(3)]


def test_any_kind_of_record_gives_the_features_of_its_image(checkpoint, pixels):
    mapper = FeatureMapper(str(checkpoint), device="cpu")
    files = [encode(Image.fromarray(image)) for image in pixels]
    expected = mapper.reader(model_input(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)), torch.arange(3))[
        "features"
    ]
    kinds = [np.stack(pixels), np.array(files, dtype=object), np.array([{"bytes": f, "path": None} for f in files])]
    for images in kinds:
        rows = mapper({"image": images, "id": np.arange(3)})
        np.testing.assert_allclose(rows["features"], expected, atol=1e-5)
        assert rows["id"].tolist() == [0, 1, 2]
    assert isinstance(mapper.reader, FeatureReader) and rows["features"].dtype == np.float32


def test_rows_without_a_readable_image_are_left_out_with_a_warning(checkpoint, pixels, caplog):
    mapper = FeatureMapper(str(checkpoint), "picture", device="cpu")
    files = np.array([encode(Image.fromarray(pixels[0])), b"no image", np.zeros((2, 2, 7))], dtype=object)
    rows = mapper({"picture": files, "id": np.arange(3)})
    assert rows["id"].tolist() == [0] and rows["features"].shape == (1, 32)
    assert "2 rows are left out" in caplog.text and "not an image" in caplog.text
    assert mapper({"picture": files[1:], "id": np.arange(2)})["features"].shape == (0, 32)
    with pytest.raises(ValueError, match="image_column='picture' does not exist; choose one of 'image'"):
        mapper({"image": files})


def machines(*resources):
    return SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": found} for found in resources])


def test_actors_follow_the_gpus_or_the_cores_of_the_cluster():
    cpus = machines({"CPU": 8.0}, {"CPU": 3.0})
    assert _plan(cpus, None, 100, 2) == (5, {"num_cpus": 2, "num_gpus": 0})
    assert _plan(cpus, 2, 100, 2)[0] == 2
    assert _plan(cpus, None, 3, 1)[0] == 3  # never more than there are shards
    gpus = machines({"CPU": 16.0, "GPU": 4.0}, {"CPU": 64.0})
    assert _plan(gpus, None, 100, 3) == (4, {"num_cpus": 3, "num_gpus": 1})
    with pytest.raises(ValueError, match="num_workers=8 makes an actor need 9 cores, which no machine"):
        _plan(cpus, None, 100, 9)


def test_what_does_not_go_together_is_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["extract_features", str(checkpoint), "--dataset", "digits", "--output_dir", str(tmp_path / "table")]
    assert main([*command, "--engine", "ray"]) == 2
    assert "engine='ray' needs Ray; install it with: pip install 'ldae[ray]'" in capsys.readouterr().err
    monkeypatch.setattr("ldae.verbs.extract_features.import_ray", lambda: None)
    assert main([*command, "--engine", "ray", "--device", "cpu"]) == 2
    assert "device='cpu' does not go with engine='ray'" in capsys.readouterr().err


def test_an_actor_that_replaces_a_dead_one_computes_only_missing_shards_of_its_part(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an actor changes to the driver's folder
    folder = write_parquet(tmp_path / "images", [19])
    source = open_images(DataConfig(str(folder), streaming=True))

    def open_job(device):
        reader = FeatureReader(encoder.to(device), draw_images(1).to(device))
        return TableJob(reader, source, tmp_path / "table", rows_per_shard=8)

    def written(job):
        return _ShardWriter(job, str(tmp_path))({"number": 0})

    def refuse(device):
        raise ValueError("checkpoint='run' does not exist; give another.")

    assert written(open_job) == {"images": 19, "rows": 19, "refused": ""}
    (tmp_path / "table" / "data" / "train-00000-00001.parquet").unlink()
    assert written(open_job) == {"images": 8, "rows": 8, "refused": ""}
    assert written(refuse)["refused"] == "checkpoint='run' does not exist; give another."


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("ray")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*install, *PACKAGES], check=True)
    paths = os.pathsep.join([str(ROOT / "src"), str(folder)])
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    return {**os.environ, **settings, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_two_machines_of_which_an_actor_is_killed_write_the_table_of_one_process(environment, checkpoint, tmp_path):
    def command(folder: str, *more: str) -> list[str]:  # relative paths, which the actors take as the command does
        start = [sys.executable, "-m", "ldae", "extract_features", checkpoint.name, "--output_dir", folder, *more]
        return [*start, "--dataset", "digits", "--split", "train", "--num_workers", "0", "--rows_per_shard", "32"]

    here = {"env": environment, "cwd": tmp_path, "capture_output": True}
    script = [sys.executable, "-c", ON_TWO_MACHINES, "ray"]
    done = subprocess.run([*script, *command("ray", "--engine", "ray")], **here, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "actors 2" in done.stdout and "1,437 rows" in done.stdout
    subprocess.run(command("alone", "--device", "cpu"), **here, check=True)
    assert digests(tmp_path / "ray") == digests(tmp_path / "alone") and len(digests(tmp_path / "ray")) == 45
    again = subprocess.run(command("ray", "--engine", "ray"), **here, check=True)
    assert b"The table was complete already" in again.stdout


@pytest.mark.slow
def test_a_pipeline_of_ones_own_gains_features(environment, checkpoint, pixels, tmp_path):
    (tmp_path / "images").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    arguments = [str(checkpoint), str(tmp_path / "images"), str(tmp_path / "features.npy")]
    subprocess.run([sys.executable, "-c", IN_A_PIPELINE, *arguments], env=environment, check=True, capture_output=True)
    expected = FeatureMapper(str(checkpoint), device="cpu")({"image": np.stack(pixels)})["features"]
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), expected, atol=1e-5)
