"""Published figures of accelerators, and what follows from them for a recipe."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSheet:
    """Published figures of an accelerator.

    Args:
        title: Name with its variant.
        memory: Memory in GB (10^9 bytes).
        bf16: Dense matrix products in bfloat16, in TFLOPS; `None` if the hardware has none.
        float32: Matrix products in float32, in TFLOPS, without TF32.
    """

    title: str
    memory: int
    bf16: float | None
    float32: float


# From NVIDIA's data sheets and architecture white papers (Turing, Ampere, Ada, Hopper, Blackwell): dense rates with
# float32 sums, which are half of the rates that the sheets give with sparsity.
ACCELERATORS = {
    "a100": DataSheet("A100 SXM 80 GB", 80, 312, 19.5),
    "a100-40gb": DataSheet("A100 SXM 40 GB", 40, 312, 19.5),
    "b200": DataSheet("B200 SXM", 180, 2250, 75),
    "h100": DataSheet("H100 SXM", 80, 989.4, 66.9),
    "h200": DataSheet("H200 SXM", 141, 989.4, 66.9),
    "l4": DataSheet("L4", 24, 121, 30.3),
    "l40s": DataSheet("L40S", 48, 362, 91.6),
    "rtx4090": DataSheet("GeForce RTX 4090", 24, 165.2, 82.6),
    "t4": DataSheet("T4", 16, None, 8.1),
}
KEPT_FREE = 0.1  # share of the memory for CUDA itself, its libraries and fragmentation
