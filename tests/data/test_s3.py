"""Data sets and feature tables on S3, read and written by s3fs on moto's server on this machine.

Both need an older python-dateutil than the tests run on, so they are installed in a folder for this test alone.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ldae import LDAEForPreTraining
from tests.models.small_models import small_config


PACKAGES = """
    s3fs==2026.9.0 aiobotocore==3.10.0 botocore==1.43.117 aioitertools==0.13.0 jmespath==1.1.0 wrapt==2.5.2
    python-dateutil==2.9.0.post0 six==1.17.0 moto==5.2.5 boto3==1.43.117 s3transfer==0.19.3 cryptography==50.0.2
    cffi==2.1.1 pycparser==3.12 xmltodict==1.0.4 responses==0.26.3 py-partiql-parser==0.6.3 flask==3.1.3
    flask-cors==6.0.5 blinker==1.9.0 itsdangerous==2.2.0
""".split()
SERVE = """
import sys
import boto3
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0)
server.start()
url = "http://{}:{}".format(*server.get_host_and_port())
client = boto3.client("s3", endpoint_url=url, aws_access_key_id="k", aws_secret_access_key="s")
client.create_bucket(Bucket="photos")
for name in ("train-0", "test-0"):
    client.upload_file(sys.argv[1], "photos", f"images/{name}.parquet", ExtraArgs={"ACL": "public-read"})
print(url, flush=True)
sys.stdin.read()
"""
READ = """
import json, os, sys
import s3fs
from ldae.data import DataConfig, iterate_once, open_images

found = []
for address, streaming, environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        source = open_images(DataConfig(address, num_workers=0, streaming=streaming))
        found.append(sum(len(batch.images) for batch in iterate_once(source, image_size=16, batch_size=4)))
    except ValueError as error:
        found.append(str(error))
    for name in environment:
        os.environ.pop(name)
print(json.dumps(found))
"""
LIST = """
import hashlib, json, sys
import s3fs

system = s3fs.S3FileSystem()
names = system.ls(sys.argv[1]) if system.exists(sys.argv[1]) else []
print(json.dumps({name.rpartition("/")[2]: hashlib.sha256(system.cat_file(name)).hexdigest() for name in names}))
"""
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "hunter2"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "packages")]
    subprocess.run([*install, *PACKAGES], check=True)
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    paths = [str(folder / "packages"), str(Path(__file__).parents[2] / "src")]
    nowhere = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), str(folder / "nowhere"))
    return (
        own
        | nowhere
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    )


@pytest.fixture(scope="module")
def endpoint(environment, tmp_path_factory):
    from ldae.data.digits import load_digits

    file = tmp_path_factory.mktemp("digits") / "digits.parquet"
    load_digits("test").select(range(10)).to_parquet(file)
    command = [sys.executable, "-c", SERVE, str(file)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        yield next(line.strip() for line in server.stdout if line.startswith("http"))
        server.stdin.close()


def read(environment, *cases):
    command = [sys.executable, "-c", READ, json.dumps(cases)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_bucket_is_read_and_mistakes_are_told_with_their_remedy(environment, endpoint):
    here = {"AWS_ENDPOINT_URL": endpoint, **KEYS}
    folder, *files, bucket, name, keys, unreachable = read(
        environment,
        ("s3://photos/images", False, here),
        ("s3://photos/images/train-*.parquet", True, here),
        ("s3://photos/images/test-0.parquet", True, here),
        ("s3://photoss/images", False, here),
        ("s3://photos/imagess", False, here),
        ("s3://photos/images", False, {"AWS_ENDPOINT_URL": endpoint}),
        ("s3://photos/images", False, {**here, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}),
    )
    assert folder == 10 and files[0] == 10 and "the splits are test" in files[1]
    assert bucket.startswith("data.dataset='s3://photoss/images': there is no 'photoss', or these credentials")
    assert name.startswith("data.dataset='s3://photos/imagess' holds no .parquet or .tar file")
    assert "NoCredentialsError" in keys and "set credentials in the environment: AWS_ACCESS_KEY_ID and" in keys
    assert "Could not connect" in unreachable and "the endpoint (AWS_ENDPOINT_URL)" in unreachable
    assert not any("hunter2" in text for text in (bucket, name, keys, unreachable))


def test_a_public_bucket_needs_no_credentials(environment, endpoint):
    public = environment | {"FSSPEC_S3_ANON": "true", "AWS_ENDPOINT_URL": endpoint}
    assert read(public, ("s3://photos/images", False, {}), ("s3://photos/images", True, {})) == [10, 10]


def test_a_table_is_written_to_a_bucket_killed_and_resumed(environment, endpoint, tmp_path):
    """Killed after its first shards, the table ends with the same bytes as one that was not."""
    torch.manual_seed(0)
    LDAEForPreTraining(small_config()).save_pretrained(tmp_path / "run")
    here = environment | {"AWS_ENDPOINT_URL": endpoint, **KEYS, "OMP_NUM_THREADS": "1"}
    common = [str(tmp_path / "run"), "--dataset", "digits", "--split", "train", "--num_workers", "0"]
    common += ["--rows_per_shard", "64", "--device", "cpu"]

    def command(name: str) -> list[str]:
        return [sys.executable, "-m", "ldae", "extract_features", *common, "--output_dir", f"s3://photos/{name}"]

    def listed(name: str) -> dict[str, str]:
        found = subprocess.run(
            [sys.executable, "-c", LIST, f"photos/{name}/data"], env=here, check=True, capture_output=True, text=True
        )
        return json.loads(found.stdout.splitlines()[-1])

    subprocess.run(command("whole"), env=here, check=True, capture_output=True)
    with subprocess.Popen(command("killed"), env=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        while killed.poll() is None and not listed("killed"):
            time.sleep(0.05)
        killed.kill()
    before = listed("killed")
    resumed = subprocess.run(command("killed"), env=here, check=True, capture_output=True, text=True)
    assert len(before) < 23 or "The table was complete already" in resumed.stdout
    assert listed("killed") == listed("whole") and len(listed("whole")) == 23
    refused = subprocess.run(
        [*command("x")[:-1], "s3://photoss/x"], env=here, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2 and "there is no 'photoss'" in refused.stderr
