"""Recording of hidden states: of every block, or of those chosen by their index."""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any

from torch import nn
from transformers.utils.output_capturing import OutputRecorder


# Up to 5.22, transformers' lists of hidden states left the embeddings out of the count.
COUNTS_EMBEDDINGS = "num_hidden_layers_key" in {field.name for field in fields(OutputRecorder)}


def record_every(block: type[nn.Module]) -> OutputRecorder:
    """Record the hidden states of all blocks, which are numbered through encoder and decoder."""
    total: dict[str, Any] = {"num_hidden_layers_key": "total_num_hidden_layers"} if COUNTS_EMBEDDINGS else {}
    return OutputRecorder(block, **total)


def hidden_states_by_index(forward: Callable) -> Callable:
    """Let `output_hidden_states` be an index or a list of them, under every version of transformers.

    Indices count in the full tuple: 0 is the embeddings, -1 the last block. The other hidden states are `None`, and an
    index out of range raises a `ValueError`.
    """

    @wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = kwargs.get("output_hidden_states")
        if wanted is None or isinstance(wanted, bool):
            return forward(self, *args, **kwargs)
        wanted = [wanted] if isinstance(wanted, int) else list(wanted)
        count = len(self.base_model.layers) + 1
        if not all(-count <= index < count for index in wanted):
            raise ValueError(
                f"output_hidden_states={wanted} is out of range; there are {count} hidden states, 0 to {count - 1}."
            )
        wanted = sorted({index % count for index in wanted})
        if COUNTS_EMBEDDINGS:
            return forward(self, *args, **kwargs | {"output_hidden_states": wanted})
        outputs = forward(self, *args, **kwargs | {"output_hidden_states": True, "return_dict": True})
        outputs["hidden_states"] = tuple(h if i in wanted else None for i, h in enumerate(outputs.hidden_states))
        return outputs if kwargs.get("return_dict", self.config.return_dict) else outputs.to_tuple()

    return wrapper
