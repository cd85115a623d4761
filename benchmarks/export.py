"""Compare exported encoders with their checkpoint, on the same images without gradients.

The native export (transformers' SiglipVisionModel with pooling) has no PCA and no conditioning to compute, but adds
attention pooling. Target: the interval reaches 1.0x. The comparison of ONNX in onnxruntime with PyTorch's eager mode
on the CPU is only reported.

    python benchmarks/export.py [--pairs N]
"""

import argparse
import tempfile
from pathlib import Path

import onnxruntime
import torch
from encoder import build_models
from harness import Comparison, compare
from transformers import AutoModel
from transformers.utils.logging import disable_progress_bar

from ldae import LDAEModel
from ldae.export import export_checkpoint


# size, image size, patch size, batch, timed pairs
CASES = [("tiny", 32, 4, 64, 15), ("base", 256, 16, 4, 9)]
ONNX_BATCHES = [64, 1]


def run(pairs: int | None = None) -> list[Comparison]:
    """Compare every case."""
    results = []
    for size, image_size, patch_size, batch, default_pairs in CASES:
        model, _ = build_models(size, image_size, patch_size)
        with tempfile.TemporaryDirectory() as folder:
            name = f"{size} {image_size}/{patch_size}"
            results += compare_native(name, model, batch, pairs or default_pairs, Path(folder))
            if size == "tiny":
                results += compare_onnx(name, model, pairs or default_pairs, Path(folder))
    return results


def compare_native(name: str, model: LDAEModel, batch: int, pairs: int, folder: Path) -> list[Comparison]:
    """Compare the exported model of transformers, loaded as its users load it."""
    export = export_checkpoint(save(model, folder), folder / "native", format="transformers")
    print(f"{name}: exported model and checkpoint differ by at most {export.max_abs_error:.1e}", flush=True)
    native, images = AutoModel.from_pretrained(folder / "native").eval(), draw_images(model, batch)

    def forward(encoder: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return encoder(images).pooler_output

    return [
        compare(
            f"exported to transformers {name} batch {batch}",
            lambda: forward(native),
            lambda: forward(model),
            pairs=pairs,
            target=1.0,
        )
    ]


def compare_onnx(name: str, model: LDAEModel, pairs: int, folder: Path) -> list[Comparison]:
    """Compare the exported graph on as many threads as torch has."""
    export = export_checkpoint(save(model, folder), folder / "onnx", format="onnx")
    print(f"{name}: exported graph and checkpoint differ by at most {export.max_abs_error:.1e}", flush=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", options, ["CPUExecutionProvider"])

    def case(batch: int) -> Comparison:
        images = draw_images(model, batch)
        array = images.numpy()

        def eager() -> torch.Tensor:
            with torch.no_grad():
                return model(images).pooler_output

        def graph() -> list:
            return session.run(["pooler_output"], {"pixel_values": array})

        return compare(f"exported to ONNX {name} batch {batch}", graph, eager, pairs=pairs)

    return [case(batch) for batch in ONNX_BATCHES]


def save(model: LDAEModel, folder: Path) -> Path:
    """Save an untrained checkpoint; its accuracy does not matter here."""
    model.tokenizer.fitted.fill_(True)
    model.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


def draw_images(model: LDAEModel, batch: int) -> torch.Tensor:
    size = model.config.image_size
    return torch.rand(batch, model.config.num_channels, size, size) * 2 - 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="timed pairs of every case")
    disable_progress_bar()
    run(parser.parse_args().pairs)
