"""`ldae doctor --config FILE.yaml`: what limits a recipe here, or with --on on other machines, and what to change."""

import sys
import textwrap
from importlib.metadata import version

import torch

from ldae.data import ImageSource, open_images
from ldae.processes import choose_device, join_processes
from ldae.training.costs import ACCELERATORS, KEPT_FREE, Plan, RecipeCosts, count_costs
from ldae.training.doctor import (
    WAITED,
    Speed,
    advise,
    measure_speed,
    median_shorter_side,
)
from ldae.training.machine import Machine, can_compile, cpp_compiler, free_memory, look_at_machine
from ldae.training.memory import MemoryEstimate
from ldae.training.progress import describe_bytes, describe_count, describe_seconds
from ldae.training.recipe import Recipe, load_recipe
from ldae.verbs.options.start import DoctorOptions


PACKAGES = ("torch", "transformers", "diffusers", "datasets", "accelerate")
UNITS = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
DAY = 86400.0  # seconds
WIDTH, INDENT = 80, 14


def doctor(options: DoctorOptions) -> int:
    """Run `ldae doctor`."""
    recipe = load_recipe(options.config, options.overrides)
    if options.on is None:
        device = choose_device(options.device)
        join_processes(cpu=device.type == "cpu")
        machine = look_at_machine()
        _show_machine(machine)
    # A mistake in the name of the images is told before anything is measured.
    source = open_images(recipe.data) if options.on is None and options.read else None
    costs = count_costs(recipe)
    _show_recipe(recipe, costs, options.config)
    if options.on is None:
        _measure(recipe, costs, machine, source)
    else:
        _show_plan(Plan(recipe, costs, ACCELERATORS[options.on], options.num_devices or 1, options.mfu))
    return 0


def _show_machine(machine: Machine) -> None:
    _show("Machine", str(machine))
    if machine.device == "cuda":
        memory = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
        _show("GPU memory", ", ".join(describe_bytes(each) for each in memory))
    _show("Software", f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES))
    compiler = cpp_compiler()
    possible = f"torch.compile {'can' if can_compile(machine.device) else 'cannot'} be used"
    _show("Compiler", f"{possible} ({compiler or 'there is no C++ compiler'})")
    _show("bfloat16", "in the GPU's hardware" if machine.bf16 else "no GPU computes in it here")


def _show_recipe(recipe: Recipe, costs: RecipeCosts, name: str | None) -> None:
    config, training = recipe.model_config(), recipe.training
    _show(
        "Recipe",
        f"{name or 'of the options'}: {costs.weights / 1e6:,.1f} M weights train, images of {config.image_size} x "
        f"{config.image_size}; {describe_count(training.images, 'image')} in steps of {training.total_batch_size:,}",
    )
    recomputed = ", activations computed again" if training.activation_checkpointing else ""
    _show(
        "Arithmetic",
        f"{_count(costs.forward)}FLOP forward, {_count(costs.step)}FLOP forward and backward an image{recomputed}",
    )


def _show_memory(memory: MemoryEstimate, place: str) -> None:
    _show(
        "Memory",
        f"about {describe_bytes(memory.held + memory.missing)}: {describe_bytes(memory.held)} of weights, "
        f"{describe_bytes(memory.optimizer)} of gradients and AdamW's moments, "
        f"{describe_bytes(memory.missing - memory.optimizer)} of a step of "
        f"{describe_count(memory.micro_batch_size, 'image')}; "
        f"{describe_bytes(memory.held + memory.free)} {place}",
    )


def _measure(recipe: Recipe, costs: RecipeCosts, machine: Machine, source: ImageSource | None) -> None:
    """Measure on this machine and print what limits the recipe."""
    device, training = machine.device, recipe.training
    memory = costs.memory(free_memory(torch.device(device)), training.batch_layout(1)[0])
    _show_memory(memory, "are free")
    speed = measure_speed(recipe, costs, memory, device, source)
    precision = "bfloat16" if training.mixed_precision == "bf16" else "float32"
    _show("Peak", f"{_count(speed.peak)}FLOP/s in the product of two large matrices in {precision}")
    _show(
        "Step",
        f"{speed.step:,.1f} images/s with {describe_count(speed.batch_size, 'random image')} a step, "
        f"{speed.share_of_peak:.0%} of the peak",
    )
    side = None
    if source is not None:
        _show("Loader", f"{speed.loader:,.1f} images/s alone, with num_workers = {recipe.data.num_workers}")
        _show(
            "Training", f"{speed.training:,.1f} images/s with its images: {speed.waited:.0%} of a step waits for them"
        )
        side = median_shorter_side(source) if speed.waited > WAITED else None
    time = describe_seconds(speed.seconds(training.images))
    _show("Whole recipe", f"about {time} on this device, without fits of a tokenizer, probes and pictures")
    _show("Limit", _limit(speed, memory))
    for advice in advise(recipe, machine, speed, memory, side):
        _show("Change", advice)


def _limit(speed: Speed, memory: MemoryEstimate) -> str:
    """Name what limits a recipe here."""
    if not memory.fits:
        fitting = memory.fitting_micro_batch(memory.micro_batch_size)
        remedy = "choose a smaller network" if fitting is None else f"give --micro_batch_size {fitting}"
        return f"memory: a step of {describe_count(memory.micro_batch_size, 'image')} does not fit; {remedy}"
    if speed.waited > WAITED:
        return f"reading: {speed.waited:.0%} of a step waits for images"
    return f"the step: {speed.share_of_peak:.0%} of the peak of this device is used"


def _show_plan(plan: Plan) -> None:
    """Print what a recipe takes on accelerators that are not here."""
    accelerator, memory = plan.accelerator, plan.memory
    precision = "bfloat16" if plan.bf16 else "float32"
    _show("On", f"{plan.devices} x {accelerator.title}, {plan.peak / 1e12:,.1f} TFLOP/s each in {precision}")
    _show_memory(memory, f"of {accelerator.memory} GB may be used")
    largest = plan.largest_micro_batch
    size = describe_count(memory.micro_batch_size, "image")
    most = (
        "not even one image does: choose a smaller network"
        if largest is None
        else f"the largest that fits: {largest:,}"
    )
    _show("Micro-batch", f"of {size} {'fits' if memory.fits else 'does not fit'}; {most}")
    time = plan.seconds
    days = f"{time / DAY:,.1f} days, " if time > 2 * DAY else ""
    _show("Time", f"{days}{describe_seconds(time)}; {describe_seconds(plan.devices * time)} of device time in all")
    _show("Reading", f"{plan.images_per_second:,.0f} images/s for each device, which the loader has to give")
    _show(
        "Assumed",
        f"{plan.mfu:.0%} of the published peak (--mfu), no time for exchanging gradients, reading, probes and "
        f"pictures; {KEPT_FREE:.0%} of the memory stays free. This is arithmetic, not a measurement.",
    )
    if not plan.bf16 and accelerator.bf16 is not None:
        _show(
            "Change", f"--mixed_precision bf16: {accelerator.bf16:,.1f} TFLOP/s in place of {accelerator.float32:,.1f}"
        )


def _count(number: float) -> str:
    """Write a number with the prefix of its size: 12.3 G."""
    size = next((size for size in ("T", "G", "M") if number >= UNITS[size]), "k")
    return f"{number / UNITS[size]:,.1f} {size}"


def _show(label: str, text: str) -> None:
    print(textwrap.fill(text, WIDTH, initial_indent=label.ljust(INDENT), subsequent_indent=" " * INDENT), flush=True)
