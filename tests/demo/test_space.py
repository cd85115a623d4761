import ast
import shutil
from pathlib import Path

import pytest
import yaml

import ldae
from ldae.cli import run_verb
from ldae.data import DataConfig
from ldae.demo.space import export_space, space_texts
from ldae.hub.families import FAMILIES
from tests.demo.conftest import STORED


def metadata_of(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def constants_of(app: Path) -> dict[str, str]:
    """The names that the app's module level assigns, as code."""
    body = ast.parse(app.read_text()).body
    return {node.targets[0].id: ast.unparse(node.value) for node in body if isinstance(node, ast.Assign)}


def test_a_space_holds_all_that_it_needs(tmp_path: Path) -> None:
    files = export_space(str(STORED / "ddae"), tmp_path / "space", DataConfig("digits", split="test"))
    names = {path.relative_to(tmp_path / "space").as_posix() for path in files}
    code = {name for name in names if name.startswith("ldae/")}
    package = Path(ldae.__file__).parent
    assert code == {
        f"ldae/{path.relative_to(package).as_posix()}" for path in package.rglob("*.*[yd]")
    }  # and py.typed
    names -= code
    assert names == {
        "README.md", ".gitattributes", "app.py", "requirements.txt", "checkpoint/config.json",
        "checkpoint/model.safetensors", "checkpoint/preprocessor_config.json",
        "checkpoint/scheduler/scheduler_config.json",
    }  # fmt: skip
    metadata = metadata_of(tmp_path / "space")
    assert (metadata["sdk"], metadata["app_file"], metadata["title"]) == ("gradio", "app.py", "ddae")
    assert len(metadata["short_description"]) <= 60 and "models" not in metadata
    assert int(metadata["sdk_version"].split(".")[0]) >= 6
    required = (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    named = {line.partition(">")[0] for line in required}
    assert {"torch", "transformers", "gradio"} <= named and not {"ldae", "pytest", "onnx"} & named
    assert constants_of(tmp_path / "space" / "app.py")["IMAGES"] == "DataConfig('digits', split='test')"


def test_its_app_is_the_page_of_the_copy(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(STORED / "ldae", folder)
    export_space(str(folder), tmp_path / "space", DataConfig("digits", split="test"))
    shutil.rmtree(folder)  # the Space does not need it
    app = tmp_path / "space" / "app.py"
    found = {"__name__": "app", "__file__": str(app)}
    exec(compile(app.read_text(), app, "exec"), found)
    assert found["page"].title == "mine · ldae"


def test_a_space_of_a_hub_checkpoint_names_it(tmp_path: Path) -> None:
    texts = space_texts(
        "me/nano", "me/nano", FAMILIES["ldae"], DataConfig("uoft-cs/cifar10", image_column="img", streaming=True)
    )
    for file, text in texts.items():
        (tmp_path / file).write_text(text)
    metadata = metadata_of(tmp_path)
    assert (metadata["models"], metadata["datasets"]) == (["me/nano"], ["uoft-cs/cifar10"])
    constants = constants_of(tmp_path / "app.py")
    assert constants["CHECKPOINT"] == "'me/nano'"
    assert constants["IMAGES"] == "DataConfig('uoft-cs/cifar10', image_column='img', streaming=True)"


def test_what_a_space_could_not_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="is on this machine, where a Space cannot read it"):
        export_space(str(STORED / "ldae"), tmp_path / "space", DataConfig(str(tmp_path / "photos")))
    with pytest.raises(ValueError, match="does not exist"):
        export_space(str(tmp_path / "nothing"), tmp_path / "space")
    assert not (tmp_path / "space").exists(), "nothing is left behind"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    assert run_verb("demo", [str(STORED / "ldae"), "--export-space", str(tmp_path / "full")]) == 2
    assert "holds other files; give a new folder" in capsys.readouterr().err


def test_the_verb_exports_again_over_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dataset in ("digits", "none"):
        arguments = [str(STORED / "ldae"), "--dataset", dataset, "--export_space", str(tmp_path / "space")]
        assert run_verb("demo", arguments) == 0
    assert constants_of(tmp_path / "space" / "app.py")["IMAGES"] == "None"
    assert f"hf upload NAME/SPACE {tmp_path}/space --repo-type space" in capsys.readouterr().out
