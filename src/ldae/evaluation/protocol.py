"""The named protocols by which a model's features are probed."""

from dataclasses import dataclass, field
from typing import Any

from .encoder import Layer
from .linear_probe import ProbeSettings


PROTOCOLS = ("paper", "cached")
CROPS = ("resized", "padded")


@dataclass(frozen=True)
class Protocol:
    """Protocol of a probe: by default that of l-DAE's paper (App. A).

    Args:
        name (`str`, defaults to `"paper"`): `"paper"`: features are computed anew in each epoch, from images under
            random crop and flip. `"cached"`: they are computed once, of the centre crop and its mirror image, of
            which each epoch takes one at random; it costs one or two passes over the images instead of one an epoch.
        layers (`tuple`, *optional*): Blocks, counted from 1, or a DDAE's taps by name; by default the model's own
            choice.
        timesteps (`tuple[int, ...]`, *optional*): Time steps; by default the model's own choice.
        noisy (`bool`, defaults to `False`): Whether inputs are corrupted at t, in training and in the test.
        crop (`str`, defaults to `"resized"`): `"resized"`: random resized crops, as in MAE's probe, which l-DAE's
            paper refers to. `"padded"`: crops of the image with a black edge, as DDAE's paper has it.
        crop_scale (`tuple[float, float]`, defaults to `(0.08, 1.0)`): Share of the area that random resized crops
            keep.
        crop_padding (`int`, defaults to 4, in pixels): Width of that edge.
        horizontal_flip (`bool`, defaults to `True`): Whether images are mirrored; not for digits or letters.
        settings ([`ProbeSettings`]): How the probes train.
    """

    name: str = "paper"
    layers: tuple[Layer, ...] | None = None
    timesteps: tuple[int, ...] | None = None
    noisy: bool = False
    crop: str = "resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_padding: int = 4
    horizontal_flip: bool = True
    settings: ProbeSettings = field(default_factory=ProbeSettings)

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise ValueError(f"protocol={self.name!r} is unknown; choose one of {', '.join(PROTOCOLS)}.")
        if self.crop not in CROPS:
            raise ValueError(f"crop={self.crop!r} is unknown; choose one of {', '.join(CROPS)}.")
        if self.crop_padding < 1:
            raise ValueError(f"crop_padding={self.crop_padding} must be 1 pixel or more.")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={self.crop_scale} must be two numbers with 0 < low <= high <= 1.")

    @property
    def augmentation(self) -> list[str]:
        """Names of what is done to training images."""
        crop = {"resized": "random_resized_crop", "padded": "random_crop"}[self.crop]
        return [crop] * (self.name == "paper") + ["horizontal_flip"] * self.horizontal_flip

    def describe_crops(self) -> dict[str, Any]:
        """Describe the sizes of random crops."""
        padding = {"crop_padding": self.crop_padding} if "random_crop" in self.augmentation else {}
        return {"crop_scale": list(self.crop_scale) if "random_resized_crop" in self.augmentation else None, **padding}

    def describe_features(self, layer: Layer | None, timestep: int | None, pooling: str) -> dict[str, Any]:
        """Describe which features of a model are probed, as results.json keeps it."""
        return {
            "preset": self.name,
            "layer": layer,
            "timestep": timestep,
            "input": "noisy" if self.noisy else "clean",
            "pooling": pooling,
        }
