"""Throughput of pre-training on a device: images a second, and the share of the fastest matrix product."""

from collections.abc import Callable
from typing import Any

import torch
from harness import seconds_per_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ldae import LDAEConfig, LDAEForPreTraining


STEPS, WARM_UP = 20, 5


def device() -> torch.device:
    """Choose CUDA if it is available."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def matrix_product(side: int) -> dict[str, Any]:
    """Measure the peak: FLOPs a second of a square product in bfloat16, the best of five rounds."""
    a, b = (torch.randn(side, side, device=device(), dtype=torch.bfloat16) for _ in range(2))
    seconds = min(_timed(lambda: a @ b, STEPS) for _ in range(5))
    return {"side": side, "dtype": "bfloat16", "flops_per_second": 2 * side**3 / seconds}


def training_step(size: str, *, image_size: int, batch_size: int, compiled: bool, peak: float) -> dict[str, Any]:
    """Measure a pre-training step in bfloat16: draw, corrupt, predict, loss, backward, AdamW.

    If memory runs out, the batch is halved; the result names the batch that was used.

    Args:
        size (`str`): One of `LDAEConfig.from_size`.
        image_size (`int`, in pixels): With patches of 16, or of 4 for 32 pixels and less.
        batch_size (`int`): Images of the first attempt.
        compiled (`bool`): Whether to compile the model.
        peak (`float`): FLOPs a second of the fastest matrix product.

    Returns:
        `dict`: images_per_second, share_of_peak, peak_memory_gib (of CUDA) and the settings.
    """
    attempts = []
    while True:
        attempts.append(batch_size)
        try:
            found = _measure(size, image_size, batch_size, compiled)
            break
        except torch.cuda.OutOfMemoryError:
            if batch_size == 1:
                raise
        batch_size //= 2
        torch.cuda.empty_cache()
    per_second = batch_size / found["seconds_per_step"]
    return {
        "size": size,
        "image_size": image_size,
        "batch_size": batch_size,
        "out_of_memory_at": attempts[:-1],
        "compiled": compiled,
        "dtype": "bfloat16",
        **found,
        "images_per_second": per_second,
        "share_of_peak": per_second * found["flops_per_image"] / peak,
    }


def _measure(size: str, image_size: int, batch_size: int, compiled: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.compiler.reset()
    patch_size = 16 if image_size > 32 else 4
    config = LDAEConfig.from_size(size, image_size=image_size, patch_size=patch_size, latent_dim=16)
    model = LDAEForPreTraining(config).to(device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.rand(batch_size, 3, image_size, image_size, device=device()) * 2 - 1
    positions = torch.arange(batch_size, device=device())

    def loss(count: int = batch_size) -> torch.Tensor:
        timesteps, noise = model.draw_corruption(positions[:count], seed=0)
        positions.add_(batch_size)
        with torch.autocast(device().type, dtype=torch.bfloat16):
            return model(images[:count], timesteps, noise).loss

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    # Counted with attention as plain products, whose FLOPs are known on all devices.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss(1).backward()
    optimizer.zero_grad(set_to_none=True)
    if compiled:
        model.compile(fullgraph=True)
    on_gpu = device().type == "cuda"
    for _ in range(WARM_UP if on_gpu else 1):
        step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = _timed(step, STEPS if on_gpu else 2)
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    weights = sum(weight.numel() for weight in model.parameters())
    found = {"seconds_per_step": seconds, "flops_per_image": counter.get_total_flops(), "peak_memory_gib": memory}
    return {"weights": weights, **found}


def _timed(call: Callable[[], Any], calls: int) -> float:
    """Return the seconds per call of so many calls, after one untimed call."""
    call()
    return seconds_per_call(call, calls)
