"""Feature tables as the source of probes."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldae.cli import run_verb
from ldae.results import read_results
from ldae.verbs import extract_features, grid_search, knn, linear_probe
from tests.processes import forget_processes

from ..verb_calls import call


IMAGES = "--num_workers 0 --dataset".split()
PLACES = "--layers 1,3 --timesteps 0,20".split()
VERBS = {
    "ridge": (linear_probe, "--protocol cached --probe ridge --horizontal_flip false".split()),
    "knn": (knn, ["--k", "5"]),
    "grid_search": (grid_search, ["--write_config", "false"]),
}


@pytest.fixture(autouse=True)
def fresh_state():
    yield
    forget_processes()


@pytest.fixture
def tables(checkpoint, few_digits, tmp_path):
    """Tables of training and test images."""
    made = []
    for split in ("train", "test"):
        made.append(tmp_path / split)
        places = [*PLACES, "--split", split, "--output_dir", made[-1], "--device", "cpu"]
        assert call(extract_features, [checkpoint, *IMAGES, few_digits, *places]) == 0
    return made


@pytest.fixture
def error_of(checkpoint, capsys):
    """The line that a user sees."""

    def error_of(tables, *arguments, places=PLACES):
        capsys.readouterr()
        features = ",".join(map(str, tables))
        assert run_verb("knn", [str(checkpoint), "--features", features, *places, *arguments]) == 2
        return capsys.readouterr().err

    return error_of


def test_probes_of_a_table_have_the_numbers_of_probes_of_images(checkpoint, few_digits, tables, tmp_path):
    """Entries of results.json are equal, so each takes the place of the other."""
    features = ["--features", ",".join(map(str, tables))]
    for name, (verb, options) in VERBS.items():
        of_images, of_table = tmp_path / f"{name}-images", tmp_path / f"{name}-table"
        assert call(verb, [checkpoint, *IMAGES, few_digits, *PLACES, *options, "--output_dir", of_images]) == 0
        assert call(verb, [checkpoint, *features, *PLACES, *options, "--output_dir", of_table]) == 0
        assert read_results(of_table) == read_results(of_images) != [], name
    # Without --layers and --timesteps a search looks at all that the table has.
    assert call(grid_search, [checkpoint, *features, "--write_config", "false", "--output_dir", tmp_path / "all"]) == 0
    assert read_results(tmp_path / "all") == read_results(tmp_path / "grid_search-table")


def test_one_table_gives_every_tenth_row_to_the_test(checkpoint, few_digits, tables, tmp_path):
    shutil.copytree(few_digits, tmp_path / "one")
    (tmp_path / "one" / "test.parquet").unlink()
    table = tmp_path / "one-table"
    assert call(extract_features, [checkpoint, *IMAGES, tmp_path / "one", *PLACES, "--output_dir", table]) == 0
    for source in ([*IMAGES, tmp_path / "one"], ["--features", table]):
        assert call(knn, [checkpoint, *source, *PLACES, "--k", "5", "--output_dir", tmp_path / source[0][2:]]) == 0
    results = read_results(tmp_path / "features")
    assert results == read_results(tmp_path / "num_workers")
    assert (results[0]["n"], results[0]["protocol"]["train_images"]) == (15, 135)


def test_a_table_stays_the_checkpoints_when_a_search_moves_its_default(checkpoint, few_digits, tables):
    features = ["--features", ",".join(map(str, tables))]
    assert call(grid_search, [checkpoint, *features]) == 0
    assert call(knn, [checkpoint, *features]) == 0  # the choice is in the table


def test_what_does_not_fit_is_named(checkpoint, tables, error_of, tmp_path, capsys):
    assert "not layer 2 at t = 0; choose with --layers and --timesteps" in error_of(
        tables, places=["--layers", "2", "--timesteps", "0"]
    )
    assert "have noisy=False, not True" in error_of(tables, "--noisy")
    assert "join=true needs images" in error_of(tables, "--join")
    assert "have compute_dtype=float32, not bfloat16" in error_of(tables, "--mixed_precision", "bf16")
    for option, value in (("--dataset", "digits"), ("--eval_split", "test")):
        assert f"{option[2:]}={value} and features=" in error_of(tables, option, value)
    assert "scores on training rows show nothing" in error_of([tables[0], tables[0]])
    assert "no such column" in error_of(tables, "--label_column", "kind")
    assert "holds no features" in error_of([tmp_path])
    assert run_verb("linear_probe", [str(checkpoint), "--features", ",".join(map(str, tables)), *PLACES]) == 2
    assert "add --protocol cached --horizontal_flip false" in capsys.readouterr().err


def test_another_checkpoints_table_is_refused(checkpoint, tables, error_of, model):
    next(model.parameters()).data.add_(1)
    model.save_pretrained(checkpoint)
    assert "not by the weights of checkpoint=" in error_of(tables)


@pytest.mark.parametrize("what", ["a column", "labels", "not finite"])
def test_a_damaged_table_is_refused(tables, error_of, what):
    (file,) = (tables[1] / "data").glob("*.parquet")
    table, column = pq.read_table(file), "features_layer3_t20"
    footer = {b"ldae": pq.read_metadata(file).metadata[b"ldae"]}

    def replaced(name, values):
        return table.set_column(table.schema.names.index(name), table.schema.field(name), values)

    if what == "a column":
        table = table.drop_columns(column)
    elif what == "labels":
        table = replaced("label", pa.array([None] * len(table), pa.int64()))
    else:
        values = np.stack(table[column].to_pylist()).astype("float32")
        values[7, 3] = np.nan
        table = replaced(column, pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]))
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **footer}), file)
    said = {
        "a column": f"differs in its columns ({column})",
        "labels": "60 of 60 images have no label",
        "not finite": f"values in {column} that are not finite numbers, in row 7",
    }
    assert said[what] in error_of(tables)


def test_a_table_of_a_former_version_is_refused(tables, error_of):
    for folder in tables:
        identity = json.loads((folder / "extraction.json").read_text())
        (folder / "extraction.json").write_text(json.dumps({k: v for k, v in identity.items() if k != "weights"}))
    assert "by weights that it does not name" in error_of(tables)
