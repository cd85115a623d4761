"""Exports of checkpoints: a plain ViT for transformers or timm, an ONNX graph, or a torch.export program."""

from ldae.export.checkpoint import Export, export_checkpoint


__all__ = ["Export", "export_checkpoint"]
