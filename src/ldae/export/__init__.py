"""Checkpoints as others run them: a plain ViT of transformers or timm, an ONNX graph, a program of torch.export."""

from ldae.export.checkpoint import Export, export_checkpoint


__all__ = ["Export", "export_checkpoint"]
