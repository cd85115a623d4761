"""Parts of both configurations, l-DAE's and DDAE's: the refusal of unknown fields, and remote code's pipelines."""

import difflib
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig


# Keys that transformers itself writes into a config.json or passes to the constructor.
_FOREIGN_KEYS = frozenset(
    "auto_map attn_implementation custom_pipelines experts_implementation name_or_path num_labels out_features "
    "out_indices output_attentions per_layer_config quantization_config stage_names tie_last_hidden_states "
    "tie_word_embeddings torch_dtype use_cache".split()
)


def refuse_unknown_fields(config_class: type, given: dict[str, Any]) -> None:
    """Refuse fields that a configuration does not declare; transformers would keep them silently.

    Raises:
        ValueError: naming the field, and the most similar one that is declared.
    """
    declared = {field.name for field in fields(config_class)}
    for key, value in given.items():
        if key in _FOREIGN_KEYS or key.startswith("_") or hasattr(PreTrainedConfig, key):
            continue
        close = difflib.get_close_matches(key, declared, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"see the fields of {config_class.__name__}."
        raise ValueError(f"{key}={value!r}: {config_class.__name__} has no such field; {hint}")


class RemotePipelinesMixin:
    """Configuration whose remote code brings its own image pipeline; where ldae is imported, it registers them."""

    @property
    def custom_pipelines(self) -> dict[str, Any]:
        """The image pipeline that converts images as training does, by task; empty outside remote code."""
        given = self.__dict__.get("custom_pipelines")
        if given is not None or not type(self).__module__.startswith("transformers_modules"):
            return given or {}
        # One pipeline, so that transformers can also choose the task by it.
        if any("Classification" in name for name in getattr(self, "architectures", None) or ()):
            task, name, auto_class = "image-classification", "Classification", "AutoModelForImageClassification"
        else:
            task, name, auto_class = "image-feature-extraction", "FeatureExtraction", "AutoModel"
        return {task: {"impl": f"image_pipelines_ldae.LDAEImage{name}Pipeline", "pt": (auto_class,)}}

    @custom_pipelines.setter
    def custom_pipelines(self, pipelines: dict[str, Any]) -> None:
        self.__dict__["custom_pipelines"] = pipelines
