"""The base of both configurations, l-DAE's and DDAE's: strict fields, and remote code's image pipelines."""

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


class DenoiserConfig(PreTrainedConfig):
    """A configuration that refuses unknown and invalid fields, and whose remote code brings its own image pipeline."""

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_unknown_fields(kwargs)
        self.fill_in(kwargs)
        self.check_fields()  # here, so that the user meets a plain ValueError
        super().__post_init__(**kwargs)

    def fill_in(self, kwargs: dict[str, Any]) -> None:
        """Fill in the fields that follow from others; `kwargs` are those that transformers adds."""
        raise NotImplementedError

    def check_fields(self) -> None:
        """Check the combination of fields.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        raise NotImplementedError

    def validate_architecture(self) -> None:
        """Check all fields; `config.validate()` calls this after an assignment."""
        super().validate_architecture()
        self.check_fields()

    def require_choices(self, choices: dict[str, tuple[str, ...]]) -> None:
        """Refuse values of fields that are not among their choices."""
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}.")

    def require(self, name: str, holds: bool, allowed: str) -> None:
        """Refuse the value of a field unless a condition holds; `allowed` is what it must be."""
        if not holds:
            raise ValueError(f"{name}={getattr(self, name)!r} is invalid; it must be {allowed}.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration as transformers does, but set overriding fields before the checks run."""
        declared = {field.name for field in fields(cls)} - {"dtype"}
        overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in declared}
        return super().from_dict(config_dict | overrides, **kwargs)

    def _refuse_unknown_fields(self, given: dict[str, Any]) -> None:
        """Refuse fields that are not declared, which transformers would keep; name the most similar declared one."""
        declared, name = {field.name for field in fields(self)}, type(self).__name__
        for key, value in given.items():
            if key in _FOREIGN_KEYS or key.startswith("_") or hasattr(PreTrainedConfig, key):
                continue
            close = difflib.get_close_matches(key, declared, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"see the fields of {name}."
            raise ValueError(f"{key}={value!r}: {name} has no such field; {hint}")

    @property
    def custom_pipelines(self) -> dict[str, Any]:
        """The image pipeline that converts images as training does, by task; only remote code needs to name it."""
        given = self.__dict__.get("custom_pipelines")
        if given is not None or not type(self).__module__.startswith("transformers_modules"):
            return given or {}
        # One pipeline, so that transformers can also choose the task by it.
        if any("Classification" in name for name in getattr(self, "architectures", None) or ()):
            task, name, auto_class = "image-classification", "Classification", "AutoModelForImageClassification"
        else:
            task, name, auto_class = "image-feature-extraction", "FeatureExtraction", "AutoModel"
        return {task: {"impl": f"image_processing_ldae.LDAEImage{name}Pipeline", "pt": (auto_class,)}}

    @custom_pipelines.setter
    def custom_pipelines(self, pipelines: dict[str, Any]) -> None:
        self.__dict__["custom_pipelines"] = pipelines
