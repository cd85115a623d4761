"""A small part of the fuzzer; `make fuzz` runs all of it."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import constants

from ldae.verbs import VERBS
from tests.processes import forget_processes

from . import refusals
from .__main__ import run_family
from .commands import SMALL
from .judge import LONGEST, Case, broken_rule, by_verb, judge


PART = {"images": 30, "recipes": 25, "checkpoints": 10, "tables": 8, "commands": 40}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    forget_processes()
    yield
    torch.set_num_threads(threads)
    forget_processes()


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("family", PART)
def test_nothing_damaged_crashes(family: str, ground: Path) -> None:
    done = run_family(family, 0, list(range(PART[family])), ground)
    crashed = [
        f"{family}:{number} {what}\n  {outcome.text}" for number, what, outcome in done if outcome.kind == "crashed"
    ]
    assert not crashed, "\n".join(crashed)
    assert {outcome.kind for *_, outcome in done} == {"refused", "accepted"}


def test_a_missing_argument_is_asked_for_by_its_place() -> None:
    assert by_verb("card") == "checkpoint is missing; give CHECKPOINT after the command."


def test_every_verb_is_fuzzed() -> None:
    assert set(SMALL) == set(VERBS)


def test_forty_wrong_inputs_are_refused_in_one_line_each(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    found = refusals.table(ground)
    assert len(found) == 40
    bad = [
        f"ldae {words}: {status}, {said}"
        for words, status, said in found
        if status != 2 or said.count("\n") != 1 or broken_rule(said, ())
    ]
    assert not bad, "\n".join(bad)


def refuse(text: str) -> Case:
    return Case("", lambda: text, ("k=",))


def test_the_judge_knows_a_good_refusal_from_a_bad_one() -> None:
    assert judge(refuse("k=0 must be 1 or more.")).kind == "refused"
    assert judge(Case("", lambda: None, ())).kind == "accepted"
    assert judge(Case("", lambda: 1 // 0, ())).text.startswith("ZeroDivisionError")
    for text, rule in {
        "k=0 must be\n1 or more.": "several lines",
        "it must be 1 or more.": "names none of k=",
        "k=0 is wrong.": "no remedy",
        "k=0 must be" + " 1" * LONGEST: "characters",
    }.items():
        assert rule in str(broken_rule(text, ("k=",))) and judge(refuse(text)).kind == "crashed"


def test_a_case_is_the_same_again(ground: Path) -> None:
    (first,), (again,) = (run_family("images", 3, [17], ground) for _ in range(2))
    assert first[:2] == again[:2] and first[2].kind == again[2].kind
