"""Adapters around the networks that DDAE reads features from: how each is built, run, tapped and cut."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch.func import functional_call

from .conditioning_ddae import ConditionedEmbedding, fold_dit, run_dit, run_unet
from .configuration_ddae import DDAEConfig
from .diffusers_ddae import build_network, diffusers_class
from .initialization_ddae import set_dit_rules
from .modeling_ldae import LDAEModel
from .noise_ddae import NOISE_PROCESSES, NoiseProcess
from .taps_ddae import block_ends, cut_unet, record, unet_taps


class NetworkAdapter(ABC):
    """The interface of [`DDAEModel`] to one type of network, without state: the network is the model's `denoiser`."""

    @abstractmethod
    def build(self, config: DDAEConfig) -> Any:
        """Build the whole network."""

    @abstractmethod
    def taps(self, network: Any) -> list[str]:
        """Return the names of all taps, in the order in which they run."""

    @abstractmethod
    def default_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """Return the tap at which features are read by default."""

    @abstractmethod
    def cut(self, network: Any, tap: str) -> None:
        """Remove everything from the network that runs after a tap."""

    @abstractmethod
    def shapes(self, model: Any, taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one image's activations at some taps, without computing them."""

    @abstractmethod
    def run(self, model: Any, x0: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Corrupt the network's clean input and run the network up to its last tap.

        Args:
            model ([`DDAEModel`]): The model around the network.
            x0 (`torch.Tensor`): The clean input, as [`DDAEModel.encode`] returns it.
            timesteps (`torch.LongTensor` of shape `(B,)` or `(1,)`).
            noise (`torch.Tensor`, *optional*): eps; `None` for a clean input.

        Returns:
            `torch.Tensor`: the activation at the last tap.
        """

    def noise_shape(self, model: Any, pixel_values: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of the noise of one of the images `(B, C, H, W)`."""
        return tuple(model.encode(pixel_values).shape[1:])

    def build_noise_process(self, config: DDAEConfig) -> NoiseProcess | None:
        """Build the noise process of the network's input; `None` for a network that adds the noise itself."""
        return None

    def set_initialization(self, network: Any) -> None:
        """Set rules for the initial weights of a whole network that is to be trained, where they are not torch's."""
        return None

    def read(self, network: Any, activation: torch.Tensor) -> torch.Tensor:
        """Turn an activation that a hook has seen into what [`~NetworkAdapter.run`] returns."""
        return activation


class DiffusersAdapter(NetworkAdapter):
    """An adapter around a network of diffusers that takes noisy maps, time steps, and perhaps a class or a prompt."""

    def build(self, config: DDAEConfig) -> Any:
        """Build the whole network, without initial weights."""
        return build_network(diffusers_class(config.denoiser_type), config.denoiser_config or {}, "denoiser_config")

    def build_noise_process(self, config: DDAEConfig) -> NoiseProcess:
        # By name: in remote code the configuration's module and the model's are loaded as two copies.
        return NOISE_PROCESSES[config.parametrization](config.scheduler_config)

    @torch.no_grad()
    def shapes(self, model: Any, taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shapes that a forward on the meta device gives."""
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        side = model.config.image_size
        images = torch.empty(1, model.config.num_channels, side, side, device="meta")
        found = record(model.denoiser, taps, lambda: functional_call(model, meta, (images,)))
        return {name: tuple(activation.shape[1:]) for name, activation in found.items()}

    def run(self, model: Any, x0: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Run the network as [`NetworkAdapter.run`] says, on maps `(B, c, h, w)`."""
        xt = model.corruption(x0, noise, timesteps).to(next(model.denoiser.parameters()).dtype)
        return self.activation(model, xt, model.corruption.network_times(timesteps).expand(xt.shape[0]))

    def predict(
        self, model: Any, xt: torch.Tensor, times: torch.Tensor, augmentation_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Run a whole network.

        Args:
            model ([`DDAEModel`]): The model, built whole.
            xt (`torch.Tensor` of shape `(B, c, h, w)`): Noisy maps.
            times (`torch.Tensor` of shape `(B,)`): The number that the network embeds for the time of each map.
            augmentation_labels (`torch.Tensor` of shape `(B, 9)`, *optional*): Zeros, no augmentation, by default.

        Returns:
            `torch.Tensor` of shape `(B, c, h, w)`.
        """
        added = None
        if model.augmentation is not None:
            if augmentation_labels is None:
                augmentation_labels = xt.new_zeros(len(xt), model.augmentation.in_features)
            added = model.augmentation(augmentation_labels.to(xt.dtype))  # (B, E)
        return self.forward(model, xt, times, added)

    def forward(
        self, model: Any, xt: torch.Tensor, times: torch.Tensor, added: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the network to its end, with a tensor `(B, E)` that is added to its time embedding."""
        if added is None and model.self_conditioning is None:
            return model.denoiser(xt, times, **self.conditions(model, xt)).sample
        return self.conditioned_forward(model, xt, times, added)

    def activation(self, model: Any, xt: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the activation at the last tap for noisy maps `(B, c, h, w)` at times `(B,)`."""
        return self.forward(model, xt, times)

    def conditions(self, model: Any, xt: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the network's further arguments: the null class and the empty prompt, where it takes them."""
        conditions = {}
        if model.config.null_class is not None:
            conditions["class_labels"] = torch.full((xt.shape[0],), model.config.null_class, device=xt.device)
        if model.empty_prompt is not None:
            conditions["encoder_hidden_states"] = model.empty_prompt.to(xt.dtype).expand(xt.shape[0], -1, -1)
        return conditions

    @abstractmethod
    def conditioned_forward(
        self, model: Any, xt: torch.Tensor, times: torch.Tensor, added: torch.Tensor | None
    ) -> torch.Tensor:
        """Run the network to its end with augmentation labels, self-conditioning, or both."""

    @abstractmethod
    def conditioning_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """Return the tap whose features self-conditioning takes: the configured one, or the middle."""

    @abstractmethod
    def conditioning_widths(self, network: Any) -> tuple[int, int]:
        """Return the widths of the features at that tap, and of the time embedding."""


class UNetAdapter(DiffusersAdapter):
    """The adapter around `UNet2DModel` and `UNet2DConditionModel`, tapped at residual and attention blocks."""

    def taps(self, network: Any) -> list[str]:
        return unet_taps(network)

    def default_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """Return the 6th block of the up path (7th for EDM), as the public code does, or the middle one of fewer."""
        up = [tap for tap in block_ends(taps) if tap.startswith("up_blocks.")]
        number = config.noise_process.default_up_block
        return up[number - 1] if len(up) >= number else up[(len(up) - 1) // 2]

    def cut(self, network: Any, tap: str) -> None:
        cut_unet(network, tap)

    def conditioned_forward(
        self, model: Any, xt: torch.Tensor, times: torch.Tensor, added: torch.Tensor | None
    ) -> torch.Tensor:
        return run_unet(model.denoiser, xt, times, added, model.self_conditioning)

    def conditioning_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """Return the end of the middle block: self-conditioning reaches the whole up path."""
        middle = [tap for tap in taps if tap.startswith("mid_block.")][-1]
        if config.self_conditioning_layer not in (None, middle):
            raise ValueError(
                f"self_conditioning_layer={config.self_conditioning_layer!r} cannot be used with a UNet; it must be "
                f"{middle!r}, the end of its middle block."
            )
        return middle

    def conditioning_widths(self, network: Any) -> tuple[int, int]:
        return network.config.block_out_channels[-1], network.time_embedding.linear_2.out_features


class DiTAdapter(DiffusersAdapter):
    """The adapter around `DiTTransformer2DModel`, tapped at transformer blocks."""

    def build(self, config: DDAEConfig) -> Any:
        network = super().build(config)
        if config.self_conditioning or config.augmentation_labels:
            for block in network.transformer_blocks:
                block.norm1.emb = ConditionedEmbedding(block.norm1.emb)
        return network

    def set_initialization(self, network: Any) -> None:
        set_dit_rules(network)

    def taps(self, network: Any) -> list[str]:
        return [f"transformer_blocks.{i}" for i in range(len(network.transformer_blocks))]

    def default_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """Return the middle block: `transformer_blocks.13` of DiT-XL/2's 28, the public code's layer-13."""
        return taps[(len(taps) - 1) // 2]

    def cut(self, network: Any, tap: str) -> None:
        network.transformer_blocks = network.transformer_blocks[: int(tap.split(".")[1]) + 1]
        network.norm_out = network.proj_out_1 = network.proj_out_2 = None

    def activation(self, model: Any, xt: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Run the blocks only: diffusers' forward cannot end early, because the last layer folds tokens into a map."""
        conditions = self.conditions(model, xt)
        return run_dit(model.denoiser, xt, times, **conditions, self_conditioning=model.self_conditioning)[0]

    def conditioned_forward(
        self, model: Any, xt: torch.Tensor, times: torch.Tensor, added: torch.Tensor | None
    ) -> torch.Tensor:
        labels = self.conditions(model, xt)["class_labels"]
        hidden, embedded = run_dit(model.denoiser, xt, times, labels, added, model.self_conditioning)
        return fold_dit(model.denoiser, hidden, embedded, labels)

    def conditioning_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """Return any block but the last; the middle one by default."""
        name = config.self_conditioning_layer
        if name is not None and name not in taps[:-1]:
            raise ValueError(
                f"self_conditioning_layer={name!r} does not exist or is the last block; choose one of "
                f"{', '.join(taps[:-1])}."
            )
        return name or self.default_tap(config, taps)

    def conditioning_widths(self, network: Any) -> tuple[int, int]:
        return network.inner_dim, network.inner_dim


class LDAEAdapter(NetworkAdapter):
    """The adapter around [`LDAEModel`]. Taps: its blocks, `(B, N, C)`, normalised as its own features are."""

    def build(self, config: DDAEConfig) -> Any:
        return LDAEModel(config.ldae_config)

    def taps(self, network: Any) -> list[str]:
        return [f"layers.{i}" for i in range(len(network.layers))]

    def default_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """Return the block after which the l-DAE itself reads features."""
        fields = config.denoiser_config or {}
        return taps[(fields["feature_layer"] or fields["num_hidden_layers"]) - 1]

    def cut(self, network: Any, tap: str) -> None:
        network.layers = network.layers[: int(tap.split(".")[1]) + 1]

    def shapes(self, model: Any, taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shape of all blocks' tokens."""
        config = model.denoiser.config
        return dict.fromkeys(taps, (config.num_patches, config.hidden_size))

    def run(self, model: Any, x0: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Run the network as [`NetworkAdapter.run`] says, on images `(B, C, H, W)` and noise `(B, N, d)`."""
        return model.denoiser(x0, timesteps, noise, interpolate_pos_encoding=True).last_hidden_state

    def noise_shape(self, model: Any, pixel_values: torch.Tensor) -> tuple[int, ...]:
        return model.denoiser.noise_shape(pixel_values)

    def read(self, network: Any, activation: torch.Tensor) -> torch.Tensor:
        return network.normalize(activation)


ADAPTERS: dict[str, NetworkAdapter] = {
    "UNet2DModel": UNetAdapter(),
    "UNet2DConditionModel": UNetAdapter(),
    "DiTTransformer2DModel": DiTAdapter(),
    "LDAEModel": LDAEAdapter(),
}
