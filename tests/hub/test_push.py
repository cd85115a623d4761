import json
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError

from ldae.cli import run_verb
from ldae.hub.push import HubUploader, check_publishable, published_files, push_to_hub
from ldae.hub.remote_code import save_with_code
from ldae.hub.upload import is_sealed_card
from tests.hub.conftest import make_run_folder
from tests.hub.hub_server import TestHub
from tests.processes import Runner


PUSH = "import sys; from ldae.cli import run_verb; raise SystemExit(run_verb('push_to_hub', sys.argv[1:]))"
REPO = ("model", "tester/nano")
STORED = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def hub_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A hub that HubUploader's processes talk to: they inherit the environment and read it when they start."""
    with TestHub() as hub:
        for key, value in hub.environment(tmp_path / "hf_home").items():
            monkeypatch.setenv(key, value)
        yield hub


def wait_for(uploader: HubUploader, seconds: float = 60) -> None:
    assert uploader._watcher is not None
    uploader._watcher.join(seconds)
    assert not uploader._watcher.is_alive()


def snapshots(folder: Path) -> list[Path]:
    return list(folder.glob(".push-*"))


def test_push_uploads_what_others_need_and_nothing_else(run_folder: Path, run_python: Runner) -> None:
    with TestHub() as hub:
        done = run_python(PUSH, run_folder, "--repo_id", "nano", "--commit_message", "first", hub=hub)
        assert done.stdout.strip() == f"Pushed to {hub.url}/tester/nano"
        repo = hub.repos[REPO]
        files = repo.files()
        assert not repo.private
        assert repo.titles() == ["first", "initial commit"], "one commit: nobody sees half a push"
    expected = {
        "README.md", "config.json", "metrics.jsonl", "model.safetensors", "preprocessor_config.json", "recipe.yaml",
        "results.json", "scheduler/scheduler_config.json", "pictures/denoising_digits.png",
    }  # fmt: skip
    code = {path for path in files if path.endswith("_ldae.py")}
    assert "modeling_ldae.py" in code
    assert set(files) == expected | code
    assert {path: (run_folder / path).read_bytes() for path in files} == files
    assert is_sealed_card(files["README.md"].decode())
    assert "# nano\n" in files["README.md"].decode()


RELEASES = """
import sys
from pathlib import Path
from transformers import AutoConfig
from ldae.cli import run_verb

folder = Path(sys.argv[1])
push = lambda tag: run_verb("push_to_hub", [str(folder), "--repo_id", "nano", "--tag", tag])
config = folder / "config.json"
assert push("v1") == 0
config.write_text(config.read_text().replace('"feature_timestep": 10', '"feature_timestep": 20'))
assert push("v2") == 0
for tag, timestep in {"v1": 10, "v2": 20}.items():
    assert AutoConfig.from_pretrained("tester/nano", revision=tag).feature_timestep == timestep
(folder / "metrics.jsonl").write_text("{}")
assert push("v1") == 2
"""


def test_a_tag_names_a_release_and_is_never_moved(run_folder: Path, run_python: Runner) -> None:
    with TestHub() as hub:
        done = run_python(RELEASES, run_folder, hub=hub)
        places = [f"Pushed to {hub.url}/tester/nano/tree/{tag}" for tag in ("v1", "v2")]
        assert [line for line in done.stdout.splitlines() if line.startswith("Pushed")] == places
        assert "tag='v1' is taken: tester/nano has v1, v2. A release is never moved" in done.stderr
        assert hub.repos[REPO].files()["metrics.jsonl"] != b"{}", "nothing was sent"


def test_weights_that_are_cut_short_or_missing_are_refused(run_folder: Path) -> None:
    weights = run_folder / "model.safetensors"
    index = run_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": weights.name, "b": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00002\.safetensors, which .*index\.json names"):
        check_publishable(run_folder)
    index.unlink()
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cannot be loaded: .*header.*restore this one's files"):
        check_publishable(run_folder)


def test_all_code_of_a_ddae_is_pushed(tmp_path: Path) -> None:
    shutil.copytree(STORED / "ddae", tmp_path, dirs_exist_ok=True)
    code = {path.name for path in save_with_code(tmp_path)}
    assert code <= set(published_files(tmp_path)) and "modeling_ddae.py" in code


def push_and_wait(folder: Path) -> None:
    uploader = HubUploader(folder, "tester/nano")
    uploader.push()
    wait_for(uploader)
    assert not uploader._behind


def test_push_again_sends_only_what_changed_to_a_private_branch(run_folder: Path, run_python: Runner) -> None:
    settings = "--repo_id nano --private true --revision later --with_code false".split()
    with TestHub() as hub:
        run_python(PUSH, run_folder, *settings, hub=hub)
        uploads = [path for method, path in hub.requests if method == "PUT"]
        hub.requests.clear()
        (run_folder / "metrics.jsonl").write_text("{}\n")
        run_python(PUSH, run_folder, *settings, hub=hub)
        repo = hub.repos[REPO]
        assert repo.private
        assert repo.files("main") == {}
        assert repo.files("later")["metrics.jsonl"] == b"{}\n"
        assert not any(path.endswith(".py") for path in repo.files("later"))
        assert len(uploads) == 2, "weights and picture"
        assert [path for method, path in hub.requests if method == "PUT"] == []


def test_a_card_edited_on_the_hub_survives_the_next_push(
    hub_in_this_process: TestHub, run_folder: Path, run_python: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    edit = """
from huggingface_hub import HfApi
HfApi().upload_file(path_or_fileobj=b"# By hand", path_in_repo="README.md", repo_id="tester/nano")
"""
    caplog.set_level(logging.INFO, "ldae.hub.push")
    push_and_wait(run_folder)
    run_python(edit, hub=hub_in_this_process)
    push_and_wait(run_folder)
    assert "edited by hand, and is kept" in caplog.text
    repo = hub_in_this_process.repos[REPO]
    assert repo.files()["README.md"] == b"# By hand"
    (run_folder / "README.md").write_text("# Mine")  # one's own words are one's own to publish
    push_and_wait(run_folder)
    assert repo.files()["README.md"] == b"# Mine"


def test_an_unfitted_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run_folder(tmp_path / "unfitted", fitted=False)
    with pytest.raises(ValueError, match=r"fitted=False.*fit_patch_pca"):
        push_to_hub(folder, "tester/nano")
    assert run_verb("push_to_hub", [str(folder), "--repo_id", "tester/nano"]) == 2
    assert "never fitted" in capsys.readouterr().err
    assert not (folder / "README.md").exists(), "a refused folder is left as it was"


def test_a_folder_without_config_or_weights_is_refused(run_folder: Path) -> None:
    (run_folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        check_publishable(run_folder)
    (run_folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        check_publishable(run_folder)


def test_a_hub_that_cannot_be_reached_is_one_line(run_folder: Path, tmp_path: Path) -> None:
    with TestHub() as hub:
        environment = hub.environment(tmp_path / "hf_home")
    launcher = Path(__file__).parents[2] / "training" / "push_to_hub.py"  # the server is closed by now
    done = subprocess.run(
        [sys.executable, str(launcher), str(run_folder), "--repo_id", "tester/nano"],
        env={**environment, "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "the Hub cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_training_pushes_each_save(hub_in_this_process: TestHub, run_folder: Path) -> None:
    uploader = HubUploader(run_folder, "tester/nano", private=True)
    uploader.push("100 images seen")
    (run_folder / "metrics.jsonl").write_text("changed after the save\n")
    wait_for(uploader)
    repo = hub_in_this_process.repos[REPO]
    assert repo.private
    assert b"finished" in repo.files()["metrics.jsonl"], "the push holds the folder as it was at the save"
    assert "modeling_ldae.py" in repo.files()
    assert uploader.finish("200 images seen")
    assert repo.titles() == ["200 images seen", "100 images seen", "initial commit"]
    assert repo.files()["metrics.jsonl"] == b"changed after the save\n"
    assert snapshots(run_folder) == []


def test_a_hub_that_answers_500_costs_a_warning_and_a_later_try(
    hub_in_this_process: TestHub, run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uploader = HubUploader(run_folder, "tester/nano")
    hub_in_this_process.fail_next(1)
    uploader.push()
    wait_for(uploader)
    assert "Could not push to tester/nano; the next save tries again. HfHubHTTPError" in caplog.text
    assert "500" in caplog.text
    caplog.clear()
    uploader.push()
    wait_for(uploader)
    assert "model.safetensors" in hub_in_this_process.repos[REPO].files()
    assert caplog.text == ""
    assert snapshots(run_folder) == []


@pytest.mark.parametrize("path", ["/api/repos/create", "/_lfs/", "/commit/"])
def test_a_hub_that_hangs_is_given_up_and_tried_again(
    hub_in_this_process: TestHub, run_folder: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    uploader = HubUploader(run_folder, "tester/nano", timeout_s=4)
    hub_in_this_process.hang_next(1, path)
    start = time.monotonic()
    uploader.push()
    assert time.monotonic() - start < 1, "training waits for the snapshot alone"
    uploader.push()  # while the first hangs: left to a later save
    wait_for(uploader, 20)
    assert "The Hub did not finish within 4 s." in caplog.text
    assert not any(repo.files() for repo in hub_in_this_process.repos.values())
    uploader.timeout_s = 60
    assert uploader.finish()
    assert "model.safetensors" in hub_in_this_process.repos[REPO].files()
    assert snapshots(run_folder) == []


def test_the_end_does_not_wait_for_a_push_that_hangs(hub_in_this_process: TestHub, run_folder: Path) -> None:
    uploader = HubUploader(run_folder, "tester/nano", timeout_s=600)
    hub_in_this_process.hang_next(1)
    uploader.push()
    while not any("/repos/create" in path for _, path in hub_in_this_process.requests):
        time.sleep(0.05)
    start = time.monotonic()
    assert uploader.finish()
    assert time.monotonic() - start < 60
    assert "model.safetensors" in hub_in_this_process.repos[REPO].files()
    assert snapshots(run_folder) == []


@pytest.mark.slow
def test_a_hub_that_is_gone_ends_with_the_command_to_push_later(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with TestHub() as hub:
        for key, value in hub.environment(tmp_path / "hf_home").items():
            monkeypatch.setenv(key, value)
    uploader = HubUploader(run_folder, "tester/nano", private=True)
    uploader.push()
    wait_for(uploader)
    assert "ConnectionError: the Hub cannot be reached" in caplog.text
    assert not uploader.finish()
    command = f"ldae push_to_hub {run_folder} --repo_id tester/nano --private true"
    assert command in caplog.text
    with TestHub() as hub:  # the printed command does it
        environment = hub.environment(tmp_path / "hf_home")
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        words = command.split()[2:]
        launcher = Path(__file__).parents[2] / "training" / "push_to_hub.py"
        subprocess.run([sys.executable, str(launcher), *words], check=True)
        assert "model.safetensors" in hub.repos[REPO].files()


def test_a_folder_that_cannot_be_pushed_does_not_stop_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_run_folder(tmp_path / "unfitted", fitted=False)
    uploader = HubUploader(folder, "tester/nano")
    uploader.push()
    assert "never fitted" in caplog.text
    assert not uploader.finish()
    assert snapshots(folder) == []


def test_the_uploader_refuses_a_bad_name_and_clears_what_a_kill_left(run_folder: Path) -> None:
    with pytest.raises(HFValidationError):
        HubUploader(run_folder, "no/such/name")
    (run_folder / ".push-killed").mkdir()
    (run_folder / ".push-killed" / "config.json").write_text("{}")
    HubUploader(run_folder, "tester/nano")
    assert snapshots(run_folder) == []


def test_hidden_files_and_checkpoints_are_never_published(run_folder: Path) -> None:
    (run_folder / "pictures" / ".denoising.png.123").write_bytes(b"half")
    (run_folder / "notes_of_mine.py").write_text("")
    names = published_files(run_folder)
    assert "model.safetensors" in names
    assert not [name for name in names if "half" in name or "checkpoints" in name or "mine" in name or ".123" in name]


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ldae.hub.push")
