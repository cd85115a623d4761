"""Networks whose features FID and KID compare: Inception if its weights are at hand, else any image model."""

import os
from typing import Any

import torch
from torch import nn

import ldae  # noqa: F401 - registers the models with transformers
from ldae.checkpoints import hash_model, load_backbone
from ldae.places import place_name

from .encoder import pool_outputs


INCEPTION = "inception"
INCEPTION_FEATURES = 2048
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"


class FeatureExtractor(nn.Module):
    """A frozen network that turns images into `num_features` features.

    `name` is what results call it. `weights` is a hash that tells networks of one name apart, or `None` if the name
    alone does.
    """

    weights: str | None = None

    def __init__(self, name: str, network: nn.Module, num_features: int, num_channels: int = 3):
        super().__init__()
        self.name, self.num_features, self.num_channels = name, num_features, num_channels
        self.network: Any = network.requires_grad_(False).eval()

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the features `(b, F)` of uint8 images `(b, C, S, S)`."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the features without gradients, in float32; a single channel is repeated as often as needed.

        Raises:
            ValueError: If the network takes images of one channel, and these have three.
        """
        if images.shape[1] not in (1, self.num_channels):
            raise ValueError(
                f"extractor={self.name!r} takes images of {self.num_channels} channel, and these have "
                f"{images.shape[1]}; name another extractor."
            )
        images = images.expand(-1, self.num_channels, -1, -1)
        with torch.autocast(self.device.type, enabled=False):
            return self.extract(images).float()

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """Keep the network in evaluation mode."""
        return super().train(False)

    @property
    def protocol(self) -> dict[str, str]:
        """Entries of a protocol that name the network."""
        return {"extractor": self.name} | ({} if self.weights is None else {"extractor_weights": self.weights})

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device


class CheckpointExtractor(FeatureExtractor):
    """The pooled features of a checkpoint, of images that went through its own image processor.

    Args:
        source (`str` or path): Folder or Hub id of a checkpoint that `AutoModel` and `AutoImageProcessor` load. A
            pooling layer that the checkpoint does not hold, as in many classifiers, is not used: features are then the
            mean over tokens.

    Raises:
        ValueError: If it cannot be loaded, or has other weights missing.
    """

    def __init__(self, source: str | os.PathLike[str]):
        model, processor, has_pooler = load_backbone(source, "extractor")
        channels = getattr(model.config, "num_channels", 3)
        super().__init__(
            f"{place_name(source)} ({type(model).__name__})", model, num_features=0, num_channels=channels
        )
        self.processor, self.use_pooler, self.weights = processor, has_pooler, hash_model(model)
        self.num_features = self(torch.zeros(1, channels, 64, 64, dtype=torch.uint8)).shape[1]

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the pooled features of images that went through the image processor."""
        arrays = list(images.cpu().numpy())  # (C, S, S) each
        pixels = self.processor(images=arrays, input_data_format="channels_first", return_tensors="pt").pixel_values
        return pool_outputs(self.network(pixel_values=pixels.to(self.device)), self.use_pooler)


class InceptionExtractor(FeatureExtractor):
    """The 2,048 features of the Inception network that FID is defined with (Heusel et al. 2017, arXiv 1706.08500).

    Args:
        weights (`str` or path, *optional*): The file of its weights; by default torch-fidelity finds them.

    Raises:
        ValueError: If torch-fidelity or the weights are not at hand.
    """

    def __init__(self, weights: str | os.PathLike[str] | None = None):
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            path = None if weights is None else os.fspath(weights)
            network = NoTrainInceptionV3("inception-v3-compat", [str(INCEPTION_FEATURES)], path)
        except (ImportError, OSError) as error:
            raise ValueError(
                "extractor='inception' is not at hand: it needs torch-fidelity, which needs torchvision, and its "
                f"weights, {INCEPTION_FILE}, as inception_weights where they cannot be downloaded ({error}). Or name "
                "another extractor: a folder or a Hub id of an image model, such as a classifier of this data set."
            ) from error
        super().__init__(INCEPTION, network, INCEPTION_FEATURES)

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        """Compute Inception's features."""
        return self.network(images.to(self.device))


def load_extractor(name: str | os.PathLike[str], inception_weights: str | None = None) -> FeatureExtractor:
    """Load an extractor on the CPU.

    Args:
        name (`str` or path): `"inception"`, or a folder or Hub id of an image model.
        inception_weights (`str`, *optional*): The file of Inception's weights.

    Raises:
        ValueError: If it is not at hand; the message says what to give.
    """
    return InceptionExtractor(inception_weights) if name == INCEPTION else CheckpointExtractor(name)
