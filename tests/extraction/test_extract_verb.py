"""`ldae extract_features` and `ldae search` as their users meet them."""

import json
import os
import random
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import fsspec
import psutil
import pytest
from datasets import load_dataset
from PIL import Image

from ldae.cli import main, run_verb
from ldae.data.digits import load_digits
from tests.data.image_files import write_odd_folder
from tests.extraction.test_table import digests
from tests.hub.hub_server import TestHub
from tests.training.test_stress import write_noise_parquet


ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "training" / "extract_features.py"
FAST = "--dataset digits --split test --num_workers 0 --device cpu".split()


def extract(*arguments) -> int:
    return main(["extract_features", *map(str, arguments)])


def search(*arguments) -> int:
    return main(["search", *map(str, arguments)])


def error_of(capsys, verb, *arguments) -> str:
    assert verb(*arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


def start(checkpoint, folder, *options, processes=1) -> subprocess.Popen:
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    launch += ["--master_port", str(random.randint(20000, 40000))]
    return subprocess.Popen(
        [sys.executable, *(launch if processes > 1 else []), LAUNCHER, checkpoint, "--output_dir", folder, *options],
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_all(process) -> None:
    """SIGKILL to a launch and all of its processes, which torch.distributed.run starts in sessions of their own."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(family)
    process.communicate()


@pytest.fixture
def digit(tmp_path):
    """The seventh test image, a file."""
    load_digits("test")[7]["image"].save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def test_a_table_with_a_card_that_datasets_opens(checkpoint, tmp_path, capsys):
    folder = tmp_path / "features"
    assert extract(checkpoint, *FAST, "--output_dir", folder) == 0
    said = capsys.readouterr().out
    assert "Features of digits (test)" in said and "features 32" in said and "360 rows" in said
    table = load_dataset(str(folder), split="test", cache_dir=str(tmp_path / "cache"))
    assert table.column_names == ["row", "label", "features"] and len(table) == 360
    card = (folder / "README.md").read_text()
    assert "360 rows, one for each image" in card and "| layers | 2 |" in card and "path: data/*.parquet" in card
    assert extract(checkpoint, *FAST, "--output_dir", folder) == 0
    assert "The table was complete already" in capsys.readouterr().out
    (folder / "README.md").write_text("# Mine")
    assert extract(checkpoint, *FAST, "--output_dir", folder) == 0
    assert (folder / "README.md").read_text() == "# Mine"


def test_options_from_a_file_choose_blocks_and_time_steps(checkpoint, tmp_path):
    (tmp_path / "options.yaml").write_text("dataset: digits\nsplit: test\nlayers: [1, 3]\ntimesteps: [0, 50]\n")
    folder = tmp_path / "features"
    assert extract(checkpoint, "--config", tmp_path / "options.yaml", "--output_dir", folder, "--noisy") == 0
    noted = json.loads((folder / "extraction.json").read_text())
    assert noted["layers"] == [1, 3] and noted["timesteps"] == [0, 50] and noted["noisy"]
    assert [name for name in noted["columns"] if name.startswith("features")][-1] == "features_layer3_t50"


def test_unreadable_images_are_named_on_the_screen_and_in_the_card(checkpoint, tmp_path, capsys):
    folder = write_odd_folder(tmp_path / "odd", plain=2)
    assert extract(checkpoint, "--dataset", folder, "--output_dir", tmp_path / "features") == 0
    said = capsys.readouterr().out
    assert "11 rows" in said and "skipped 3" in said and "`text.png`: not an image" in said
    assert "`text.png`: not an image" in (tmp_path / "features" / "README.md").read_text()


def test_another_models_features_come_through_its_own_processor(other_checkpoint, digit, tmp_path, capsys):
    folder = tmp_path / "features"
    assert extract(other_checkpoint, *FAST, "--output_dir", folder, "--index") == 0
    assert "features 8" in capsys.readouterr().out
    assert search(folder, digit, "--k", 2, "--device", "cpu") == 0
    assert "1.0000  7    " in capsys.readouterr().out
    message = error_of(capsys, extract, other_checkpoint, *FAST, "--output_dir", tmp_path / "x", "--timesteps", "3")
    assert "choices of l-DAE and DDAE models" in message


def test_joined_features_are_one_column_that_is_searched_and_not_mixed_with_others(
    checkpoint, digit, tmp_path, capsys
):
    joined = ["--output_dir", tmp_path / "features", "--layers", "1,2", "--timesteps", "0,20", "--join", "--index"]
    assert extract(checkpoint, *FAST, *joined) == 0
    assert "features 128" in capsys.readouterr().out  # 2 layers x 2 time steps x 32
    assert search(tmp_path / "features", digit, "--k", 2, "--device", "cpu") == 0
    assert "1.0000  7    " in capsys.readouterr().out
    assert "one after the other" in (tmp_path / "features" / "README.md").read_text()
    joined[3] = "1,3"
    assert "layers was [1, 2] and is [1, 3]" in error_of(capsys, extract, checkpoint, *FAST, *joined)
    assert "columns differ" in error_of(
        capsys, extract, checkpoint, *FAST, *joined[:2], "--layers", "1,2", "--timesteps", "0,20"
    )
    status = run_verb("knn", [str(checkpoint), "--features", str(tmp_path / "features")])
    assert status == 2 and "holds joined features of several layers" in capsys.readouterr().err


def test_an_index_may_whiten_the_features(checkpoint, digit, tmp_path, capsys):
    factory = ["--index", "--index_factory", "PCAW8,L2norm,Flat"]
    assert extract(checkpoint, *FAST, "--output_dir", tmp_path / "features", *factory) == 0
    capsys.readouterr()
    assert search(tmp_path / "features", digit, "--k", 2, "--device", "cpu") == 0
    assert "1.0000  7    " in capsys.readouterr().out


def test_search_finds_an_image_among_its_neighbours(checkpoint, digit, tmp_path, capsys):
    folder = tmp_path / "features"
    for streaming in ("false", "true"):
        place = f"{folder}_{streaming}"
        assert extract(checkpoint, *FAST, "--streaming", streaming, "--output_dir", place, "--index") == 0
        capsys.readouterr()
        assert search(place, digit, "--k", 3, "--device", "cpu") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].split() == (
            ["score", "row", "label"] if streaming == "false" else "score row shard label".split()
        )
        scores = [float(line.split()[0]) for line in lines[3:6]]
        assert scores[0] == pytest.approx(1, abs=1e-4) and scores == sorted(scores, reverse=True)
        expected = str(load_digits("test")[7]["label"])
        assert lines[3].split()[1] == "7" and lines[3].split()[-1] == expected
        assert Image.open(f"{place}/pictures/search.png").size[0] == 4 + 4 * 132
    assert search(f"{folder}_false", digit, "--dataset", tmp_path, "--device", "cpu") == 0
    assert "No picture: the images were not found again" in capsys.readouterr().out


@pytest.fixture
def bucket():
    system = fsspec.filesystem("memory")
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def test_a_table_behind_an_address_goes_on_and_is_probed(checkpoint, tmp_path, bucket, capsys):
    """Shards lost in the object store are written again; probes read the tables there as they read folders."""
    for split in ("train", "test"):
        to = ["--split", split, "--output_dir", f"{bucket}/[1]/{split}", "--rows_per_shard", "128"]
        to += "--dataset digits --num_workers 0 --device cpu".split()
        assert extract(checkpoint, *to) == 0
    assert "360 rows in memory://bucket/[1]/test" in capsys.readouterr().out
    system = fsspec.filesystem("memory")
    files = {name: system.cat_file(name) for name in system.ls("/bucket/[1]/test/data", detail=False)}
    assert [Path(name).name for name in files] == [f"test-0000{i}.parquet" for i in range(3)]
    system.rm_file("/bucket/[1]/test/data/test-00001.parquet")
    assert extract(checkpoint, *to, "--batch_size", "64") == 0
    assert "128 images in" in capsys.readouterr().out
    assert {name: system.cat_file(name) for name in system.ls("/bucket/[1]/test/data", detail=False)} == files
    assert (
        'load_dataset("parquet", data_files="memory://bucket/[1]/test/data/*.parquet"'
        in system.cat_file("/bucket/[1]/test/README.md").decode()
    )
    measured = ["--output_dir", str(tmp_path / "knn"), "--device", "cpu"]
    assert main(["knn", str(checkpoint), "--features", f"{bucket}/[1]/train,{bucket}/[1]/test", *measured]) == 0
    stored = capsys.readouterr().out
    assert main(["knn", str(checkpoint), "--dataset", "digits", *measured, "--num_workers", "0"]) == 0
    number = r"kNN k=20.*%"
    assert re.search(number, stored)[0] == re.search(number, capsys.readouterr().out)[0]


def test_mistakes_with_addresses_are_one_line(checkpoint, digit, bucket, capsys):
    to = [checkpoint, *FAST, "--output_dir"]
    assert "output_dir='https://host/table' can only be read" in error_of(capsys, extract, *to, "https://host/table")
    assert "fsspec must know s4://" in error_of(capsys, extract, *to, "s4://bucket/table")
    assert "needs the table on this machine" in error_of(capsys, extract, *to, f"{bucket}/table", "--index")
    assert "holds no features" in error_of(capsys, search, f"{bucket}/nothing", digit)
    assert "is neither a path nor an address" in error_of(capsys, extract, *to, "S3://bucket/table")
    fsspec.filesystem("memory").pipe_file("/bucket/mine/notes.txt", b"mine")
    assert "holds other files (notes.txt)" in error_of(capsys, extract, *to, f"{bucket}/mine")


def test_a_kind_of_index_that_does_not_exist_is_refused_before_the_first_image(checkpoint, tmp_path, capsys):
    folder = tmp_path / "features"
    wrong = [checkpoint, *FAST, "--output_dir", folder, "--index", "--index_factory", "Flta"]
    assert "index_factory='Flta' is not an index of FAISS" in error_of(capsys, extract, *wrong)
    assert not folder.exists()
    brackets = [checkpoint, *FAST, "--output_dir", tmp_path / "table [1]", "--index"]
    assert "in a path for a pattern; rename the folder" in error_of(capsys, extract, *brackets)


def test_what_is_wrong_is_one_line(checkpoint, digit, tmp_path, capsys):
    folder = tmp_path / "features"
    assert "output_dir is missing" in error_of(capsys, extract, checkpoint, *FAST)
    assert "dataset is missing" in error_of(capsys, extract, checkpoint, "--output_dir", folder)
    assert "blocks 1 to 3" in error_of(capsys, extract, checkpoint, *FAST, "--output_dir", folder, "--layers", "4")
    assert "does not exist" in error_of(capsys, extract, tmp_path / "x", *FAST, "--output_dir", folder)
    maps = [checkpoint, *FAST, "--output_dir", folder, "--pool", "none"]
    assert "index=true needs pool='mean'" in error_of(capsys, extract, *maps, "--index")
    assert not folder.exists()
    assert "holds no features (extraction.json is missing)" in error_of(capsys, search, folder, digit)
    two = [checkpoint, *FAST, "--output_dir", folder, "--layers", "1,2"]
    assert extract(*two) == 0
    assert "has no index of features_layer1_t10" in error_of(
        capsys, search, folder, digit, "--column", "features_layer1_t10"
    )
    assert "column=None does not exist; choose one of features_layer1_t10, features_layer2" in error_of(
        capsys, search, folder, digit
    )
    assert "timesteps was [10] and is [0]" in error_of(capsys, extract, *two, "--timesteps", "0")
    assert extract(*two, "--index") == 0
    cells = ("--index", "--index_factory", "L2norm,IVF1024,Flat")
    assert "cannot be made of 360 rows (Number of training" in error_of(capsys, extract, *two, *cells)
    chosen = ("--column", "features_layer2_t10", "--device", "cpu")
    assert "k=0 must be an integer, 1 or more" in error_of(capsys, search, folder, digit, *chosen, "--k", "0")
    assert "cannot be read (missing or forbidden file)" in error_of(
        capsys, search, folder, tmp_path / "x.png", *chosen
    )
    (checkpoint / "model.safetensors").unlink()
    assert "Say with --checkpoint where" in error_of(capsys, search, folder, digit, *chosen)
    noted = json.loads((folder / "extraction.json").read_text())
    for value, message in ((None, "does not name the model that made it; give --checkpoint"), (3, "(checkpoint=3)")):
        (folder / "extraction.json").write_text(json.dumps({**noted, "checkpoint": value}))
        assert message in error_of(capsys, search, folder, digit, *chosen)


def test_the_table_goes_to_the_hub_and_comes_back(checkpoint, tmp_path):
    with TestHub() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "hf_home"), "PYTHONPATH": str(ROOT / "src")}
        script = (
            "import sys; from ldae.cli import main; status = main(['extract_features', *sys.argv[1:]]); "
            "from datasets import load_dataset; print(load_dataset('tester/digits')['test'][359]['row']); "
            "raise SystemExit(status)"
        )
        options = [*FAST, "--output_dir", tmp_path / "features", "--push_to_hub", "tester/digits", "--private"]
        done = subprocess.run(
            [sys.executable, "-c", script, checkpoint, *options], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"Pushed to {hub.url}/datasets/tester/digits" in done.stdout and done.stdout.endswith("359\n")
        repo = hub.repos["dataset", "tester/digits"]
        assert repo.private
        assert set(repo.files()) >= {"README.md", "extraction.json", "data/test-00000.parquet"}
        assert b'load_dataset("tester/digits", split="test")' in repo.files()["README.md"]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["false", "true"])
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_three_times_the_table_equals_an_uninterrupted_one(checkpoint, tmp_path, streaming, processes):
    images = write_noise_parquet(tmp_path / "images", shards=3, rows=400)
    options = ["--dataset", images, "--streaming", streaming, "--batch_size", "4", "--rows_per_shard", "12"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = start(checkpoint, whole, *options, "--num_workers", "1")
    said = uninterrupted.communicate(timeout=300)[0]
    assert uninterrupted.returncode == 0, said[-3000:]
    for shards in (5, 20, 35):  # of 100 or so
        process = start(checkpoint, killed, *options, "--num_workers", "1", processes=processes)
        while process.poll() is None and len(list(killed.glob("data/train-*.parquet"))) < shards:
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed: " + process.stdout.read()[-3000:]
        kill_all(process)
        assert "rows" not in json.loads((killed / "extraction.json").read_text())
    resumed = start(checkpoint, killed, *options, "--num_workers", "1", processes=processes)
    said = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0, said[-3000:]
    assert digests(killed) == digests(whole)
    rows = load_dataset(str(killed), split="train", cache_dir=str(tmp_path / "cache")).num_rows
    assert rows == 1200
