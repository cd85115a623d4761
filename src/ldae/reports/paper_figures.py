"""The paper's results (Chen et al. 2024, arXiv 2401.14404), for comparison with measured ones.

All are for ImageNet at 256x256 after 400 epochs: linear-probe top-1 accuracy in percent, with the table, figure or
section of the paper. Where its text and its tables disagree, the table is used, and a note quotes the text.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperStep:
    """A step of the trajectory.

    Args:
        row (`str`): Number of the row, and beginning of its recipe's name: `"00"` to `"12"`, `"12a"`, `"12b"`.
        step (`str`): The change, in a few words.
        accuracy (`float`): Linear-probe top-1 accuracy of the 12-block encoder, in percent.
        source (`str`): Table, figure or section of the paper.
        fid (`float`, *optional*): FID-50K, if the paper gives one.
        note (`str`, *optional*): A contradiction in the paper.
    """

    row: str
    step: str
    accuracy: float
    source: str
    fid: float | None = None
    note: str | None = None


TRAJECTORY = (
    PaperStep("00", "DiT baseline", 57.5, "Tab. 1", 11.6),
    PaperStep(
        "01", "no class conditioning", 62.5, "Tab. 1", 30.9, "the text has 62.1 and FID 34.2 where Table 1 has these"
    ),
    PaperStep("02", "VQGAN without perceptual loss", 58.4, "Tab. 1", 54.3),
    PaperStep("03", "VQGAN without adversarial loss", 59.0, "Tab. 1", 75.6),
    PaperStep("04", "schedule linear in γ²", 63.4, "Tab. 1", 93.2),
    PaperStep("05", "patch-wise VAE", 64.8, "Tab. 2, d = 32", note="Fig. 6 has 64.9, the value of d = 16"),
    PaperStep("06", "patch-wise AE", 64.6, "Tab. 2, d = 32", note="Fig. 6 has 64.7, the value of d = 16"),
    PaperStep("07", "patch-wise PCA", 65.1, "Tab. 2, d = 32"),
    PaperStep("08", "predict the clean latent", 62.4, "Tab. 3"),
    PaperStep("09", "no scaling of the input, γ = 1", 63.6, "Tab. 3"),
    PaperStep("10", "noisy image as input", 63.6, "Tab. 3"),
    PaperStep("11", "projected image as output", 63.9, "Tab. 3"),
    PaperStep("12", "predict the original image: l-DAE", 64.5, "Tab. 3"),
    PaperStep("12a", "l-DAE with random crops", 65.0, "Sec. 5"),
    PaperStep("12b", "l-DAE with one noise level", 61.5, "Sec. 4.3"),
)

# Accuracy by latent dimension of a token (Tab. 2).
BY_DIMENSION: dict[str, dict[int, float]] = {
    "conv_vae": {8: 54.5, 16: 63.4, 32: 62.8, 64: 57.0, 128: 48.1},
    "vae": {16: 64.9, 32: 64.8, 64: 56.8},
    "ae": {16: 64.7, 32: 64.6, 64: 59.9},
    "pca": {8: 56.0, 16: 63.4, 32: 65.1, 64: 60.0, 128: 53.9},
    "pixel": {12: 43.7, 48: 58.5, 192: 44.7, 768: 23.6},
}
PATCH_DIM = 768  # D of those tokens: patches of 16x16 RGB pixels

BY_DIMENSION_SOURCE = "Tab. 2; pixels: Fig. 5"
BY_DIMENSION_NOTES = (
    "Table 2 gives patch-wise VAE and AE one value more (58.3 and 59.9), and does not say clearly for which d.",
    "A second series of Figure 5 has 53.0 for 48 pixel dimensions.",
)

# Accuracy by the number of the 24 blocks that form the encoder (App. A).
BY_BLOCK: dict[int, float] = {9: 58.5, 10: 62.0, 11: 64.1, 12: 64.5, 13: 63.6, 14: 61.9, 15: 59.7}
TOTAL_BLOCKS = 24
BY_BLOCK_SOURCE = "App. A"

# Accuracy by the input and by the time step t, of 1000, at which features are read (App. A).
BY_TIMESTEP: dict[str, dict[int, float]] = {
    "clean": {0: 64.1, 10: 64.5, 20: 64.1, 40: 63.3, 80: 62.2},
    "noisy": {0: 64.2, 10: 65.0, 20: 65.0, 40: 65.0, 80: 64.5},
}
BY_TIMESTEP_SOURCE = "App. A"

SETTING = "ImageNet-1k at 256 x 256, DiT-L (12 + 12 blocks of width 1024), 400 epochs: 512 million images"


def paper_step(row: str) -> PaperStep | None:
    """Return the paper's step of a row, or `None` if it has none.

    Example:
        ```python
        >>> from ldae.reports.paper_figures import paper_step
        >>> step = paper_step("07")
        >>> step.accuracy, step.source
        (65.1, 'Tab. 2, d = 32')

        ```
    """
    return next((step for step in TRAJECTORY if step.row == row), None)
