"""The peer of l-DAE's transformer in the benchmarks: transformers' own ViT without class token, of the same size."""

from transformers import IJepaConfig, IJepaModel

from ldae import LDAEConfig


def ijepa_like(config: LDAEConfig, num_hidden_layers: int) -> IJepaModel:
    """Build an untrained IJepaModel with a configuration's width, heads, activation, image and patch size."""
    return IJepaModel(
        IJepaConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
        )
    )
