"""Exports as a graph, `--format torch-export` and `onnx`: the whole computation at one t, for any batch size."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ldae.export.fold import PlainViT
from ldae.export.native import build_siglip


PROGRAM_FILE, ONNX_FILE = "model.pt2", "model.onnx"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SINGLE_FILE_BYTES = 1_800_000_000  # protobuf holds 2 GB; larger weights go to a file beside the graph


class FixedStep(nn.Module):
    """A model at one time step and a clean input."""

    timesteps: torch.Tensor

    def __init__(self, model: PreTrainedModel, timestep: int):
        super().__init__()
        self.model = model
        self.register_buffer("timesteps", torch.tensor([timestep], device=model.device), persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute `last_hidden_state` and `pooler_output`, or `logits`, of images `(B, C, H, W)`."""
        outputs = self.model(pixel_values, timesteps=self.timesteps, interpolate_pos_encoding=True)
        names = ("logits",) if "logits" in outputs else ("last_hidden_state", "pooler_output")
        return {name: outputs[name] for name in names}


class PlainEncoder(nn.Module):
    """A [`PlainViT`] as a module with the outputs of [`FixedStep`]."""

    def __init__(self, vit: PlainViT):
        super().__init__()
        self.vit = build_siglip(vit, pooling=False)
        self.classifier = None
        if vit.classifier is not None:
            weight, bias = vit.classifier
            self.classifier = nn.Linear(*weight.T.shape)
            self.classifier.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the outputs of [`FixedStep`]."""
        tokens = self.vit(pixel_values).last_hidden_state  # (B, N, C)
        pooled = tokens.mean(dim=1)
        if self.classifier is not None:
            return {"logits": self.classifier(pooled)}
        return {"last_hidden_state": tokens, "pooler_output": pooled}


def trace(module: nn.Module, num_channels: int, image_size: int) -> torch.export.ExportedProgram:
    """Trace a module to a `torch.export` program for any number of images `(B, channels, size, size)`.

    Raises:
        ValueError: If torch cannot trace it.
    """
    example = torch.zeros(2, num_channels, image_size, image_size)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(module.eval(), (example,), dynamic_shapes=_free_batch())
            return program.run_decompositions({})  # to aten operators: regions without autocast cannot be saved
    except Exception as error:  # torch raises many kinds
        raise ValueError(
            f"torch.export cannot trace {type(module).__name__} at image_size={image_size}: {error}"
        ) from error


def _free_batch() -> dict[str, Any]:
    """Return the dynamic shapes of the input: any number of images."""
    return {"pixel_values": {0: torch.export.Dim("batch", min=1)}}


def save_program(program: torch.export.ExportedProgram, folder: str | os.PathLike[str]) -> None:
    """Save a program for `torch.export.load`."""
    with quiet():
        torch.export.save(program, Path(folder, PROGRAM_FILE))


@torch.no_grad()
def run_program(folder: str | os.PathLike[str], pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the outputs of a saved program."""
    with quiet():
        return torch.export.load(Path(folder, PROGRAM_FILE)).module()(pixel_values)


def save_onnx(program: torch.export.ExportedProgram, folder: str | os.PathLike[str], outputs: Sequence[str]) -> None:
    """Save a program as an ONNX graph with the input `pixel_values`, named outputs and a dynamic batch."""
    with torch.no_grad(), quiet():
        graph: Any = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["pixel_values"],
            output_names=list(outputs),
            dynamic_shapes=_free_batch(),
            verbose=False,
        )
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    graph.save(Path(folder, ONNX_FILE), external_data=size > SINGLE_FILE_BYTES)


def run_onnx(folder: str | os.PathLike[str], pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the outputs of a saved graph with onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(Path(folder, ONNX_FILE)), options, providers=["CPUExecutionProvider"])
    values = session.run(None, {"pixel_values": pixel_values.numpy()})
    return {output.name: torch.from_numpy(value) for output, value in zip(session.get_outputs(), values, strict=True)}


def require_onnx() -> None:
    """Check that the packages for ONNX are installed.

    Raises:
        ValueError: If one is missing.
    """
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(f"format='onnx' needs {', '.join(missing)}; pip install 'ldae[export]'.")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's exporters, which warn about their own deprecations and about missing torchvision."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
