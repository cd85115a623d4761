"""FSDP2 on the CPU, by gloo: losses and weights are those of DDP, checkpoints are sharded, any launch resumes them."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldae.errors import RunError
from ldae.results import read_results
from ldae.training.checkpoint import PARTS, exported_weights, load_checkpoint, load_newest
from ldae.training.pretraining import DenoisingTask
from ldae.training.recipe import load_recipe
from tests.models.test_ddae_conditioning import NETWORKS
from tests.processes import start_on
from tests.training.conftest import TINY, train_task
from tests.training.test_accelerate_configs import resolve
from tests.training.test_ddae_pretraining import TINY as DDAE
from tests.training.test_finetuning import FAST


# Runs jobs one after the other in the processes of one launch. A job may continue a copy of the first half of a run.
SCRIPT = """
import json, os, resource, shutil, sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.distributed.tensor import DTensor
from ldae.errors import RunError
from ldae.training.callbacks import FeatureProbe
from ldae.training.finetuning import FineTuningTask, MeasureAccuracy
from ldae.training.finetuning_recipe import load_finetuning_recipe
from ldae.training.loop import Callback, train
from ldae.training.pretraining import DenoisingTask
from ldae.training.recipe import load_recipe
from ldae.training.run_folder import RunFolder

rank, place, said = os.environ["RANK"], Path(sys.argv[1]), {}
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

class CountBytes(Callback):
    def saved(self, run):
        parts = run.state.parts().items()
        tensors = [tensor for _, tensors in parts for key, tensor in tensors.items() if ".tokenizer." not in key]
        local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        said[name] = [sum(tensor.nbytes for tensor in kind) for kind in (local, tensors)]

for name, job in json.loads((place / "jobs.json").read_text()).items():
    os.environ.update(job["env"])
    folder = place / name
    if job["half_of"]:
        if rank == "0":
            half = place / job["half_of"] / "checkpoints" / "images-000000000064"
            shutil.copytree(half, folder / "checkpoints" / half.name)
        torch.distributed.barrier()
    fields = job["fields"] | {"output_dir": str(folder)}
    if name == "full disk" and rank == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file may grow beyond 1000 bytes
    try:
        if "classifier" in name:
            task = FineTuningTask(load_finetuning_recipe(place / "ddp", None, fields))
            callbacks = [MeasureAccuracy(task)]
        else:
            task = DenoisingTask(load_recipe(place / "tiny.yaml", fields))
            callbacks = [FeatureProbe(task.recipe.data, task.options), CountBytes()]
        train(task, task.options, RunFolder(folder), callbacks)
    except (ValueError, RunError) as error:
        said[name] = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
(place / f"said-{rank}.json").write_text(json.dumps(said))
torch.distributed.destroy_process_group()
"""
PRETRAINING = TINY["training"] | {
    "images": 128,
    "checkpoint_every_images": 64,
    "log_every_images": 32,
    "probe_every_images": 64,
    "probe_train_examples": 100,
    "probe_eval_examples": 50,
    "micro_batch_size": 8,
    "ema_decay": 0.9,
}
RECIPE = TINY | {"training": PRETRAINING}
FINE_TUNING = FAST | {"images": 64, "mixed_precision": "bf16", "probe_every_images": 32, "probe_eval_examples": 50}


def launch_env(name: str, *options: str) -> dict[str, str]:
    """What `accelerate launch --config_file training/accelerate/NAME.yaml` puts into the environment."""
    found = prepare_multi_gpu_env(resolve(name, *options))
    kinds = ("FSDP_", "PARALLELISM_", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM")
    off = {"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_PARALLELISM_CONFIG": "false"}
    return off | {key: value for key, value in found.items() if key.startswith(kinds)}


def job(env: dict[str, str], half_of: str | None = None, **fields: object) -> dict[str, object]:
    text = {name: yaml.safe_dump(value).splitlines()[0] for name, value in fields.items()}
    return {"env": env, "half_of": half_of, "fields": text}


def start_jobs(count: int, place: Path, jobs: dict[str, dict], recipe: dict = RECIPE) -> list:
    (place / "jobs.json").write_text(json.dumps(jobs))
    (place / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    (place / "script.py").write_text(SCRIPT)
    return start_on(count, place / "script.py", place, folder=place)


def run_jobs(count: int, place: Path, jobs: dict[str, dict], recipe: dict = RECIPE) -> None:
    done = [process.wait() for process in start_jobs(count, place, jobs, recipe)]
    assert [process.returncode for process in done] == [0] * count, [process.stderr[-3000:] for process in done]
    assert "Warning" not in "".join(line for process in done for line in process.stderr.splitlines() if "FSDP" in line)


DDP, FSDP = launch_env("multi_gpu"), launch_env("fsdp2")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The folders of runs on two processes, by the names of the jobs."""
    place = tmp_path_factory.mktemp("fsdp")
    jobs = {
        "ddp": job(DDP),
        "fsdp": job(FSDP),
        "resumed": job(FSDP, half_of="fsdp", activation_checkpointing=True),
        "fsdp from ddp": job(FSDP, half_of="ddp"),
        "ddp from fsdp": job(DDP, half_of="fsdp"),
        "classifier ddp": job(DDP, **FINE_TUNING),
        "classifier fsdp": job(FSDP, **FINE_TUNING),
        "full disk": job(FSDP, half_of="fsdp", probe_every_images=0),
        "vae": job(FSDP, latent_tokenizer="vae", residual_weight=1, tokenizer_images=64),
        "old": job(FSDP | {"FSDP_VERSION": "1"}),
        "tensors": job(FSDP | {"PARALLELISM_CONFIG_TP_SIZE": "2"}),
        "offload": job(FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}),
    }
    run_jobs(2, place, jobs)
    return place


def records(folder: Path, *keys: str) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["event"], line["images"], *(line.get(key) for key in keys)) for line in lines]


def numbers(folder: Path) -> list[tuple]:
    return records(folder, "loss", "grad_norm", "ridge_accuracy", "knn_accuracy")


def assert_same(ours: Path, theirs: Path) -> None:
    """The exported model and all of the last checkpoint are equal, bit for bit."""
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    last = [load_checkpoint(folder / "checkpoints" / "images-000000000128") for folder in (ours, theirs)]
    for part in PARTS:
        first, second = (checkpoint.read(part) for checkpoint in last)
        assert first.keys() == second.keys() and first
        assert all(torch.equal(value, second[name]) for name, value in first.items()), part
    assert last[0].state["ema_steps"] == last[1].state["ema_steps"] == 4


def test_sharded_processes_train_as_ddp_does_bit_for_bit(place):
    assert numbers(place / "ddp") == numbers(place / "fsdp")
    assert [event for event, *_ in numbers(place / "fsdp")].count("probe") == 2
    assert_same(place / "ddp", place / "fsdp")


def test_a_classifier_is_fine_tuned_as_by_ddp(place):
    """In bfloat16, with drop path, MixUp and an average; both of its weights are measured."""
    ddp, fsdp = place / "classifier ddp", place / "classifier fsdp"
    assert records(ddp, "loss", "grad_norm", "raw", "ema") == records(fsdp, "loss", "grad_norm", "raw", "ema")
    assert (ddp / "model.safetensors").read_bytes() == (fsdp / "model.safetensors").read_bytes()
    scores = [[(entry["protocol"]["weights"], entry["value"]) for entry in read_results(p)] for p in (ddp, fsdp)]
    assert scores[0] == scores[1] and [name for name, _ in scores[0]] == ["raw", "ema"]


@pytest.mark.parametrize("name", ["resumed", "fsdp from ddp", "ddp from fsdp"])
def test_a_run_is_resumed_sharded_or_not(place, name):
    """The first of them also computes activations again, which changes nothing."""
    assert_same(place / "fsdp", place / name)
    assert numbers(place / name) == [line for line in numbers(place / "fsdp") if line[1] > 64]


def data_bytes(file: Path) -> int:
    """The size of a safetensors file without its header."""
    return file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")


def test_each_process_keeps_and_writes_its_part_alone(place):
    folder = place / "fsdp" / "checkpoints" / "images-000000000128"
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) == 2 and not list(folder.parent.glob(".*"))
    for rank, shard in enumerate(shards):
        local, total = json.loads((place / f"said-{rank}.json").read_text())["fsdp"]
        assert local == pytest.approx(total / 2, rel=0.15)
        assert data_bytes(shard) == pytest.approx(total / 2, rel=0.15)


def test_a_full_disk_ends_all_processes_and_leaves_the_last_checkpoint_intact(place):
    for rank in range(2):  # one of which could write its shard
        said = json.loads((place / f"said-{rank}.json").read_text())["full disk"]
        assert "at 128 images could not be written ([Errno 27] File too large" in said
        assert "images-000000000064, is intact" in said and "\n" not in said
    checkpoints = place / "full disk" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["images-000000000064"]
    assert load_checkpoint(checkpoints / "images-000000000064").images_seen == 64


def test_fsdp_refuses_what_it_does_not_do(place):
    said = json.loads((place / "said-0.json").read_text())
    assert "does not divide the tokenizer's network" in said["vae"]
    assert said["old"] == "fsdp_version=1 in Accelerate's configuration is not supported; set it to 2."
    assert said["tensors"].startswith("parallelism_config_tp_size=2 in Accelerate's configuration is not supported")
    assert said["offload"].startswith("fsdp_offload_params=true")


def assert_close(ours: Path, theirs: Path) -> None:
    """The losses of the second half and the exported weights are equal but for rounding."""
    first, second = (
        [line for line in records(p, "loss") if line[0] == "train" and line[1] > 64] for p in (ours, theirs)
    )
    assert [loss for *_, loss in first] == pytest.approx([loss for *_, loss in second], abs=1e-5) and len(first) == 2
    first, second = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    assert max((first[name].float() - second[name].float()).abs().max().item() for name in first) < 1e-4


def test_one_process_goes_on_where_two_sharded_ones_stopped(place, tmp_path):
    half = place / "fsdp" / "checkpoints" / "images-000000000064"
    shutil.copytree(half, tmp_path / "run" / "checkpoints" / half.name)
    fields = {"output_dir": str(tmp_path / "run"), "probe_every_images": "0"}
    folder = train_task(DenoisingTask(load_recipe(place / "tiny.yaml", fields))).path
    assert (folder / "checkpoints" / "images-000000000128" / "optimizer.safetensors").is_file()
    assert_close(folder, place / "fsdp")


@pytest.mark.parametrize("damage", ["truncated", "missing", "nan", "state"])
def test_a_damaged_shard_sends_a_run_back_to_the_checkpoint_before(place, tmp_path, damage):
    folder = Path(shutil.copytree(place / "fsdp" / "checkpoints", tmp_path / "checkpoints"))
    newest = folder / "images-000000000128"
    shard = newest / load_checkpoint(newest).state["shards"][1]
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif damage == "missing":
        shard.unlink()
    elif damage == "state":
        (newest / "state.json").write_text("{")
    else:
        with safe_open(shard, "pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.offset_keys()}, file.metadata()
        tensors["model/head.projection.weight"][0] = float("nan")
        save_file(tensors, shard, metadata)
    said: list[str] = []
    checkpoint = load_newest(folder, said.append)
    assert checkpoint is not None and checkpoint.images_seen == 64 and "is damaged" in said[0]
    assert (folder / "damaged-images-000000000128").is_dir()
    for path in (checkpoint.path, folder / "damaged-images-000000000128"):
        path.joinpath("state.json").unlink()
    with pytest.raises(RunError, match="no other checkpoint"):
        load_newest(folder, said.append)


def test_weights_of_a_sharded_checkpoint_are_read_whole(place):
    newest = place / "fsdp" / "checkpoints" / "images-000000000128"
    exported, raw = exported_weights(newest), exported_weights(newest, raw=True)
    model = load_file(place / "fsdp" / "model.safetensors")
    assert exported.keys() == model.keys() and all(torch.equal(exported[name], model[name]) for name in model)
    assert not torch.equal(raw["head.projection.weight"], model["head.projection.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 1])
def test_a_killed_sharded_run_goes_on(place, tmp_path, count):
    """kill -9 of both processes after the first checkpoint; with two the end is the same bytes, else it is close."""
    shutil.copytree(place / "ddp", tmp_path / "ddp")
    processes = start_jobs(2, tmp_path, {"fsdp": job(FSDP, probe_every_images=0)})
    folder = tmp_path / "fsdp"
    while not list((folder / "checkpoints").glob("images-*")) and processes[0].poll() is None:
        time.sleep(0.005)
    for process in processes:
        process.kill()
    assert not (folder / "checkpoints" / "images-000000000128").exists()
    run_jobs(count, tmp_path, {"fsdp": job(FSDP if count > 1 else DDP, probe_every_images=0)})
    assert not list((folder / "checkpoints").glob(".*"))
    if count == 2:
        assert_same(folder, place / "fsdp")
    else:
        assert_close(folder, place / "fsdp")


@pytest.mark.slow
def test_weights_are_divided_within_a_machine_and_replicated_across(place, tmp_path):
    """HSDP on four processes, as on two machines: one copy is written in all, with which FSDP on four goes on."""
    sizes = "--num_machines 1 --num_processes 4 --parallelism_config_dp_shard_size 2".split()
    hsdp, micro = launch_env("hsdp", *sizes), {"micro_batch_size": 4}
    jobs = {"hsdp": job(hsdp, **micro), "fsdp": job(FSDP, half_of="hsdp", **micro)}
    run_jobs(4, tmp_path, jobs | {"ddp": job(DDP, **micro)})
    for name in jobs:
        assert_close(tmp_path / name, place / "fsdp")
    checkpoint = tmp_path / "hsdp" / "checkpoints" / "images-000000000128"
    local, total = json.loads((tmp_path / "said-3.json").read_text())["hsdp"]
    assert local == pytest.approx(total / 2, rel=0.15)
    assert sum(map(data_bytes, checkpoint.glob("*.safetensors"))) == pytest.approx(total, rel=0.15)


@pytest.mark.slow
def test_blocks_are_compiled_and_lora_is_merged(place, tmp_path):
    shutil.copytree(place / "ddp", tmp_path / "ddp")
    fields = {"compile": True, "activation_checkpointing": True, "probe_every_images": 0}
    lora = FINE_TUNING | {"lora_rank": 2}
    jobs = {"fsdp": job(FSDP, **fields), "classifier": job(FSDP, **lora), "classifier ddp": job(DDP, **lora)}
    run_jobs(2, tmp_path, jobs)
    assert_close(tmp_path / "fsdp", place / "fsdp")
    ours, theirs = (tmp_path / name / "model.safetensors" for name in ("classifier", "classifier ddp"))
    assert ours.read_bytes() == theirs.read_bytes() and not any("lora" in name for name in load_file(ours))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["UNet2DModel", "DiTTransformer2DModel"])
def test_other_denoisers_are_divided_too(tmp_path, network):
    fields = {"model_type": "ddae", "denoiser_type": network, "denoiser_config": NETWORKS[network][0]}
    recipe = DDAE | {"model": fields}
    fields = {"max_grad_norm": None}
    run_jobs(2, tmp_path, {"ddp": job(DDP, **fields), "fsdp": job(FSDP, **fields)}, recipe)
    assert numbers(tmp_path / "ddp") == numbers(tmp_path / "fsdp")
    if network == "DiTTransformer2DModel":
        assert_same(tmp_path / "ddp", tmp_path / "fsdp")
    else:  # the gradients of convolutions are rounded in another order
        assert_close(tmp_path / "ddp", tmp_path / "fsdp")
    local, total = json.loads((tmp_path / "said-1.json").read_text())["fsdp"]
    assert local == pytest.approx(total / 2, rel=0.15)


@pytest.mark.slow
def test_the_peak_memory_of_a_process_falls_by_its_part(tmp_path):
    """Weights, gradients, both moments and the average are held in part; DDP has the gradients a second time."""
    model = TINY["model"] | {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
    model |= {"num_hidden_layers": 10, "decoder_num_hidden_layers": 10}
    training = PRETRAINING | {"images": 32, "total_batch_size": 8, "micro_batch_size": 4, "log_every_images": 8}
    recipe = TINY | {"model": model, "training": training | {"probe_every_images": 0}}
    for name, env in (("ddp", DDP), ("fsdp", FSDP)):
        (tmp_path / name).mkdir()
        run_jobs(2, tmp_path / name, {"run": job(env)}, recipe)
    ddp, fsdp = (records(tmp_path / name / "run", "peak_memory_gib")[3][2] for name in ("ddp", "fsdp"))
    weights = load_file(tmp_path / "fsdp" / "run" / "model.safetensors").values()
    part = 5 / 2 * sum(weight.nbytes for weight in weights) / 2**30
    print(f"peak of a process: {ddp} GiB with DDP, {fsdp} GiB sharded; half of what is divided: {part:.3f} GiB")
    assert ddp - fsdp > 0.75 * part
