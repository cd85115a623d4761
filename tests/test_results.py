import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ldae.results import Result, add_result, read_results


FIELDS = {
    "metric": "accuracy",
    "value": 0.5,
    "dataset": "digits",
    "split": "test",
    "protocol": {"name": "linear", "blocks": (1, 2)},
}


def test_the_same_measurement_is_replaced_and_others_are_kept(tmp_path: Path) -> None:
    assert read_results(tmp_path) == []
    add_result(tmp_path, Result(**FIELDS))
    add_result(tmp_path, Result(**{**FIELDS, "seeds": 1, "value": 0.6}))
    add_result(tmp_path, Result(**{**FIELDS, "protocol": {"name": "knn"}, "value": 0.7}))
    add_result(tmp_path, Result(**{**FIELDS, "value": 0.8}))
    assert [entry["value"] for entry in read_results(tmp_path)] == [0.8, 0.6, 0.7]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"], "no temporary file stays"


def test_what_a_probe_found_makes_no_other_measurement(tmp_path: Path) -> None:
    """A run that was trained further kept the old number beside the new one."""
    protocol = {"name": "logistic", "penalty": 1e-4, "iterations": 40, "converged": True}
    adam = {"name": "linear", "learning_rate": 0.1, "learning_rates_tried": [0.1, 1.0]}
    for value, found in ((0.5, {}), (0.6, {"penalty": 1e-5, "iterations": 55, "learning_rate": 1.0})):
        for each in (protocol, adam, {"name": "fine-tuning", "learning_rate": 0.1}):
            changed = each | {key: new for key, new in found.items() if key in each}
            add_result(tmp_path, Result(**{**FIELDS, "value": value, "protocol": changed}))
    entries = read_results(tmp_path)
    assert [(e["protocol"]["name"], e["value"]) for e in entries] == [
        ("logistic", 0.6),
        ("linear", 0.6),
        ("fine-tuning", 0.5),  # where a rate is given, another one is another measurement
        ("fine-tuning", 0.6),
    ]
    assert entries[0]["protocol"]["penalty"] == 1e-5


def test_processes_that_add_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: add_result(tmp_path, Result(**{**FIELDS, "seeds": seed})), range(24)))
    assert sorted(entry["seed"] for entry in read_results(tmp_path)) == list(range(24))


def test_the_file_is_json_to_every_reader(tmp_path: Path) -> None:
    protocol = {"name": "noise_classification", "noise_to_signal": float("inf")}
    add_result(tmp_path, Result(**{**FIELDS, "protocol": protocol, "details": {"spread": float("nan")}}))
    (entry,) = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert entry["protocol"]["noise_to_signal"] is None and entry["spread"] is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    add_result(tmp_path, Result(**FIELDS))
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(TypeError):
        add_result(tmp_path, Result(**{**FIELDS, "details": {"note": object()}}))
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, "not finite"),
        ({"value": "0.5"}, "must be a number"),
        ({"value": True}, "must be a number"),
        ({"protocol": "knn"}, "with a 'name'"),
        ({"protocol": {"k": 20}}, "with a 'name'"),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_result(tmp_path, Result(**{**FIELDS, **change}))
    assert read_results(tmp_path) == []


def test_an_entry_has_the_keys_that_are_known() -> None:
    plain = Result(**FIELDS).entry()
    assert list(plain) == ["metric", "value", "dataset", "split", "protocol", "seed", "checkpoint"]
    full = Result(**FIELDS, seeds=(1, 2), stderr=0.1, n=9, checkpoint="x", details={"chosen": True}).entry()
    assert "seed" not in full and (full["seeds"], full["stderr"], full["n"]) == ([1, 2], 0.1, 9)
    assert full["chosen"] and full["checkpoint"] == "x"
    assert Result.from_entry(full).entry() == full and Result.from_entry(plain).entry() == plain


@pytest.mark.parametrize("text", ["[{", json.dumps({"value": 1}), "[1]"])
def test_a_broken_file_is_an_error_not_an_empty_list(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json"):
        read_results(tmp_path)
