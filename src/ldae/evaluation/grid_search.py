"""Scores of a grid of layers and time steps: the best one, and a checkpoint's choice in config.json."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldae.checkpoints import open_config
from ldae.files import write_whole

from .encoder import Layer
from .probing import ProbeResult


@dataclass(frozen=True)
class GridScore:
    """One block at one time step: held-out accuracy, which chooses, and test accuracy, which does not.

    Between equal held-out accuracies `tie_break` decides, the larger the better.
    """

    layer: Layer
    timestep: int
    noisy: bool
    held_out: float
    test: float
    stderr: float | None
    tie_break: float = 0.0


def grid_scores(results: Sequence[ProbeResult]) -> list[GridScore]:
    """The scores of every block and time step, each at the learning rate that its own held-out images chose.

    Args:
        results (`Sequence` of [`~ldae.evaluation.probing.ProbeResult`]): One grid: clean inputs, noisy ones, or both.

    Raises:
        ValueError: If nothing was held out, so that nothing can choose.
    """
    scores = []
    for result in results:
        for index, (layer, timestep) in enumerate(result.columns):
            held_out = result.probes.held_out_score(index)
            if held_out is None:
                raise ValueError("a grid needs more than one block, time step or learning rate to choose among.")
            if layer is None or timestep is None:
                raise ValueError("a grid search is for l-DAE and DDAE models: others have no time step to choose.")
            test, stderr = result.probes.score(index)
            tie_break = result.probes.tie_break(index)
            scores.append(GridScore(layer, timestep, result.protocol.noisy, held_out, test, stderr, tie_break))
    return scores


def best_score(scores: list[GridScore], *, clean_only: bool = False) -> GridScore:
    """Return the best score by held-out accuracy, then `tie_break`; `clean_only` leaves noisy inputs out."""
    return max((s for s in scores if not (clean_only and s.noisy)), key=lambda s: (s.held_out, s.tie_break))


def name_layer(layer: Layer) -> str:
    """Return a layer as text: `block 3` of an l-DAE, a DDAE's tap by its name."""
    return f"block {layer}" if isinstance(layer, int) else layer


def write_choice(folder: str | os.PathLike[str], layer: Layer, timestep: int) -> None:
    """Make a block and a time step the default of a checkpoint, for `AutoModel` and pipelines: `config.json` is
    replaced whole or not at all, the weights stay as they are.

    Args:
        folder (`str` or path): The checkpoint's, with config.json.
        layer (`int` or `str`): An l-DAE's block, counted from 1, after which its encoder is cut from then on; or a
            DDAE's tap by name.
        timestep (`int`): The time step.

    Example:
        >>> import tempfile
        >>> from ldae import LDAEConfig
        >>> folder = tempfile.mkdtemp()
        >>> LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8).save_pretrained(folder)
        >>> write_choice(folder, 3, 40)
        >>> config = LDAEConfig.from_pretrained(folder)
        >>> config.num_hidden_layers, config.decoder_num_hidden_layers, config.feature_timestep
        (3, 1, 40)
    """
    path = Path(folder) / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    before = open_config(folder)
    # Through the configuration, which re-cuts an l-DAE's stack and checks the rest; only what changes is written.
    cut = open_config(folder, **before.cut_fields(layer), feature_timestep=timestep).to_dict()
    config |= {name: value for name, value in cut.items() if value != before.to_dict().get(name)}
    write_whole(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
