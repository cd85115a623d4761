"""The files in training/accelerate, through Accelerate's own reader and launcher."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType


FOLDER = Path(__file__).parents[2] / "training" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))


def resolve(name: str, *options: str):
    """What the launcher makes of a file and of options beside it."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), *options, "training/pretrain.py"]
    return _validate_launch_command(launch_command_parser().parse_args(command))[0]


def test_there_is_a_file_for_every_kind_of_launch():
    assert [path.stem for path in FILES] == ["fsdp2", "hsdp", "multi_gpu", "multi_node", "one_gpu"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_it_and_its_header_launches_it(path):
    config = load_config_from_file(str(path))
    assert config.compute_environment.value == "LOCAL_MACHINE"
    # Precision and compilation are the recipe's: a file must not seem to set them.
    assert config.mixed_precision == "no" and config.dynamo_config == {}
    assert f"accelerate launch --config_file training/accelerate/{path.name}" in path.read_text()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("one_gpu", DistributedType.NO),
        ("multi_gpu", DistributedType.MULTI_GPU),
        ("multi_node", DistributedType.MULTI_GPU),
        ("fsdp2", DistributedType.FSDP),
        ("hsdp", DistributedType.FSDP),
    ],
)
def test_each_starts_what_it_is_named_for(name, kind):
    assert load_config_from_file(str(FOLDER / f"{name}.yaml")).distributed_type == kind
    launched = resolve(name)
    assert launched.multi_gpu == (kind == DistributedType.MULTI_GPU)
    assert launched.use_fsdp == (kind == DistributedType.FSDP)
    assert launched.num_processes == {"one_gpu": 1, "multi_gpu": 8, "multi_node": 16, "fsdp2": 8, "hsdp": 16}[name]


def test_options_of_the_command_win_over_the_file():
    options = "--num_machines 4 --num_processes 32 --machine_rank 3 --main_process_ip h"
    launched = resolve("multi_node", *options.split())
    assert (launched.num_machines, launched.num_processes, launched.machine_rank) == (4, 32, 3)
    assert (launched.main_process_ip, launched.main_process_port) == ("h", 29500)
    assert resolve("multi_gpu", "--num_processes", "2").num_processes == 2


@pytest.mark.parametrize("name", ["fsdp2", "hsdp"])
def test_fsdp_is_that_of_version_2_and_leaves_the_rest_to_the_recipe(name):
    launched = resolve(name)
    assert launched.fsdp_version == 2 and launched.fsdp_reshard_after_forward
    assert not launched.fsdp_activation_checkpointing and not launched.fsdp_offload_params
    file = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert set(file["fsdp_config"]) <= set(vars(launched))
    sizes = (launched.parallelism_config_dp_replicate_size, launched.parallelism_config_dp_shard_size)
    assert sizes == ((2, 8) if name == "hsdp" else (1, 1)) and launched.use_parallelism_config == (name == "hsdp")


def test_the_sizes_of_hsdp_are_given_in_the_command():
    options = "--num_machines 4 --num_processes 32 --parallelism_config_dp_replicate_size 4"
    launched = resolve("hsdp", *options.split())
    assert (launched.parallelism_config_dp_replicate_size, launched.parallelism_config_dp_shard_size) == (4, 8)
