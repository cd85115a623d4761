"""Read features of a model as the named columns of a table."""

import io
from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch

from ldae.evaluation.encoder import Encoder, JoinedEncoder, Layer, PooledEncoder, as_encoder
from ldae.evaluation.features import check_finite
from ldae.evaluation.opening import open_at

from .rows import FEATURES, CroppedPixels, Pixels, ProcessedPixels, model_input


POOLS = ("mean", "none")


class FeatureReader:
    """Reader of a model's features as named columns.

    One layer and time step is the column `features`, and so are several of a
    [`~ldae.evaluation.encoder.JoinedEncoder`]; otherwise several have a column each, such as `features_layer6_t10` or
    `features_up_blocks_0_resnets_1_t11`. The attribute `columns` holds the shape of a row's features in each.

    Args:
        model (`PreTrainedModel`): [`LDAEModel`], [`LDAEForPreTraining`], [`DDAEModel`] or any model of `AutoModel`.
        pixels (`torch.Tensor` of shape `(1, C, S, S)`): Any prepared image, to find the shapes.
        layers (`Sequence`, *optional*), timesteps: See [`~ldae.evaluation.features.extract_features`].
        noisy (`bool`, defaults to `False`): Corrupt the input, by a function of `seed` and each row.
        seed (`int`, defaults to 0): Seed of that noise.
        pool (`str`, defaults to `"mean"`): `"mean"` for one vector an image; `"none"` for a map `(F, h, w)`, or the
            `last_hidden_state` of another model.
        use_pooler (`bool`, defaults to `True`): Take the `pooler_output` of another model if it has one, instead of
            the mean of its tokens.
        dtype (`torch.dtype`, *optional*): Type for autocast; by default float32 without it.

    Raises:
        ValueError: If a layer, a time step or `pool` does not exist for this model.

    Example:
    ```python
    >>> import torch
    >>> from ldae import LDAEConfig, LDAEModel
    >>> from ldae.extraction.reader import FeatureReader
    >>> model = LDAEModel(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
    >>> reader = FeatureReader(model, torch.zeros(1, 3, 16, 16), timesteps=[0, 20])
    >>> {name: tuple(values.shape) for name, values in reader(torch.zeros(5, 3, 16, 16), torch.arange(5)).items()}
    {'features_layer2_t0': (5, 128), 'features_layer2_t20': (5, 128)}

    ```
    """

    def __init__(
        self,
        model: Any,
        pixels: torch.Tensor,
        *,
        layers: Sequence[Layer] | None = None,
        timesteps: Sequence[int] | None = None,
        noisy: bool = False,
        seed: int = 0,
        pool: str = "mean",
        use_pooler: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} does not exist; choose 'mean' or 'none'.")
        self.encoder: Encoder = as_encoder(model)
        if isinstance(self.encoder, PooledEncoder):
            self.encoder.use_pooler = use_pooler
        self.noisy, self.seed, self.dtype = noisy, seed, dtype
        self.pool = pool
        self._layers, self._timesteps = self.encoder.choices(layers, timesteps, noisy)
        self.joined = isinstance(self.encoder, JoinedEncoder)
        chosen: Any = (self._layers, self._timesteps) if self.encoder.has_choices else (None, None)
        if isinstance(self.encoder, JoinedEncoder):
            chosen = self.encoder.cells
        self.layers: list[Layer] | None = chosen[0]
        self.timesteps: list[int] | None = chosen[1]
        found = self._read(pixels, torch.zeros(1, dtype=torch.int64, device=pixels.device))
        several = len(found) > 1
        self.names = {choice: column_name(*choice) if several else FEATURES for choice in found}
        self.columns = {self.names[choice]: tuple(values.shape[1:]) for choice, values in found.items()}

    def __call__(self, pixels: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Read the features of a batch.

        Args:
            pixels (`torch.Tensor` of shape `(b, C, S, S)`): Images as the model takes them, on its device.
            positions (`torch.LongTensor` of shape `(b,)`): Their rows, which the noise depends on.

        Returns:
            `dict[str, torch.Tensor]`: Features `(b, *shape)` by column.
        """
        return {self.names[choice]: values for choice, values in self._read(pixels, positions).items()}

    def _read(self, pixels: torch.Tensor, positions: torch.Tensor) -> dict[Any, torch.Tensor]:
        autocast = torch.autocast(pixels.device.type, self.dtype, enabled=self.dtype is not None)
        with self.encoder.evaluating(), autocast:
            noise = self.encoder.draw_noise(pixels, positions, self.seed) if self.noisy else None
            pool = "map" if self.pool == "none" and self.encoder.has_choices else self.pool
            found = check_finite(self.encoder.features(pixels, self._layers, self._timesteps, noise, pool))
        return {(layer, t): found[layer][i] for layer in self._layers for i, t in enumerate(self._timesteps)}


def column_name(layer: Layer, timestep: int) -> str:
    """Name the column of one layer and time step among several."""
    place = f"layer{layer}" if isinstance(layer, int) else layer.replace(".", "_")
    return f"{FEATURES}_{place}_t{timestep}"


def open_reader(
    checkpoint: str,
    device: torch.device | str,
    *,
    layers: Sequence[Layer] | None = None,
    timesteps: Sequence[int] | None = None,
    every: bool = False,
    join: bool = False,
    noisy: bool = False,
    reduced: bool = True,
    **options: Any,
) -> tuple[FeatureReader, Pixels]:
    """Open a checkpoint.

    Args:
        checkpoint (`str`): Folder or Hub id of an l-DAE, a DDAE, or any vision model of `AutoModel`.
        device (`torch.device` or `str`): Where it computes.
        layers (`Sequence`, *optional*): The layers, like the following see [`~ldae.evaluation.opening.open_at`].
        timesteps (`Sequence`, *optional*): The time steps.
        every (`bool`, defaults to `False`): Read every layer.
        join (`bool`, defaults to `False`): Join the features of all layers and time steps to one vector.
        noisy (`bool`, defaults to `False`): Corrupt the input.
        reduced (`bool`, defaults to `True`): Decode large JPEG files at a fraction of their size.
        options: `seed`, `pool` and `dtype` of [`FeatureReader`].

    Returns:
        The reader of its features, and the function that makes its input from an image file.

    Raises:
        ValueError: If the checkpoint cannot be loaded, or has no such layer or time step.
    """
    encoder, layers, timesteps = open_at(checkpoint, layers, timesteps, every=every, noisy=noisy)
    if join:
        encoder, layers, timesteps = JoinedEncoder(encoder, layers or (), timesteps), None, None
    pixels: Pixels = CroppedPixels(encoder.num_channels, encoder.image_size, reduced)
    if isinstance(encoder, PooledEncoder):  # its own image processor makes its pixels
        pixels = ProcessedPixels(encoder.processor, encoder.num_channels)
        options["use_pooler"], encoder.processor = encoder.use_pooler, None
    black = io.BytesIO()
    PIL.Image.new("RGB", (64, 64)).save(black, "PNG")
    example = model_input(torch.from_numpy(pixels(black.getvalue())[0])[None])  # (1, C, S, S)
    encoder.to(device)
    choices: dict[str, Any] = {"layers": layers, "timesteps": timesteps, "noisy": noisy, **options}
    return FeatureReader(encoder, example.to(device), **choices), pixels
