"""The networks that DDAE reads features from: how each is built, run, tapped and cut. One class for each kind."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch.func import functional_call

from .conditioning_ddae import ConditionedEmbedding, fold_dit, run_dit, run_unet, start_dit
from .configuration_ddae import DDAEConfig
from .diffusers_ddae import build_network, diffusers_class
from .modeling_ldae import LDAEModel
from .noise_ddae import NOISE_PROCESSES, NoiseProcess
from .taps_ddae import block_ends, cut_unet, record, unet_taps


class NetworkAdapter(ABC):
    """What [`DDAEModel`] knows about a kind of network. It holds nothing: the network is the model's `denoiser`."""

    @abstractmethod
    def build(self, config: DDAEConfig) -> Any:
        """The whole network."""

    @abstractmethod
    def taps(self, network: Any) -> list[str]:
        """Names of all taps, in the order in which they run."""

    @abstractmethod
    def default_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """Where features are read if nothing is said."""

    @abstractmethod
    def cut(self, network: Any, tap: str) -> None:
        """Take out of the network all that would run after a tap."""

    @abstractmethod
    def shapes(self, model: Any, taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Shapes of one image's activations at some taps, without computing them."""

    @abstractmethod
    def run(self, model: Any, x0: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """
        Corrupt the network's clean input and run the network up to its last tap.

        Args:
            model ([`DDAEModel`]): With `corruption`, `denoiser`, and what stands for no class and no prompt.
            x0 (`torch.Tensor`): As [`DDAEModel.encode`] gives it.
            timesteps (`torch.LongTensor` of shape `(B,)` or `(1,)`).
            noise (`torch.Tensor`, *optional*): eps; `None` for a clean input.

        Returns:
            `torch.Tensor`: the activation at the last tap.
        """

    def noise_shape(self, model: Any, pixel_values: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of the noise of one of the images `(B, C, H, W)`."""
        return tuple(model.encode(pixel_values).shape[1:])

    def build_noise_process(self, config: DDAEConfig) -> NoiseProcess | None:
        """Build what adds noise to the network's input; `None` for a network that adds it itself."""
        return None

    def start(self, network: Any) -> None:
        """Say how the weights of a whole network that is to be trained start, where not as torch's."""
        return None

    def read(self, network: Any, activation: torch.Tensor) -> torch.Tensor:
        """An activation that a hook has seen, as [`~NetworkAdapter.run`] gives it."""
        return activation


class DiffusersAdapter(NetworkAdapter):
    """A network of diffusers: a noisy map, its time steps and perhaps a class or a prompt in."""

    def build(self, config: DDAEConfig) -> Any:
        """The whole network, without initial weights."""
        return build_network(diffusers_class(config.denoiser_type), config.denoiser_config or {}, "denoiser_config")

    def build_noise_process(self, config: DDAEConfig) -> NoiseProcess:
        # By name: in remote code the configuration's module and the model's are loaded as two copies.
        return NOISE_PROCESSES[config.parametrization](config.scheduler_config)

    @torch.no_grad()
    def shapes(self, model: Any, taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Those of a forward on the meta device."""
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        side = model.config.image_size
        images = torch.empty(1, model.config.num_channels, side, side, device="meta")
        found = record(model.denoiser, taps, lambda: functional_call(model, meta, (images,)))
        return {name: tuple(activation.shape[1:]) for name, activation in found.items()}

    def run(self, model: Any, x0: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """As of [`NetworkAdapter.run`], with maps `(B, c, h, w)`."""
        xt = model.corruption(x0, noise, timesteps).to(next(model.denoiser.parameters()).dtype)
        return self.call(model, xt, model.corruption.network_times(timesteps).expand(xt.shape[0]))

    def predict(
        self, model: Any, xt: torch.Tensor, timesteps: torch.Tensor, augmentation_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """
        What a whole network predicts.

        Args:
            model ([`DDAEModel`]): Built whole.
            xt (`torch.Tensor` of shape `(B, c, h, w)`): Noisy maps.
            timesteps (`torch.Tensor` of shape `(B,)`): What the network is told of time.
            augmentation_labels (`torch.Tensor` of shape `(B, 9)`, *optional*): Zeros where nothing was done, and by default.

        Returns:
            `torch.Tensor` of shape `(B, c, h, w)`.
        """
        if model.augmentation is None and model.self_conditioning is None:
            return model.denoiser(xt, timesteps, **self.conditions(model, xt)).sample
        added = None
        if model.augmentation is not None:
            if augmentation_labels is None:
                augmentation_labels = xt.new_zeros(len(xt), model.augmentation.in_features)
            added = model.augmentation(augmentation_labels.to(xt.dtype))  # (B, E)
        return self.predict_conditioned(model, xt, timesteps, added)

    def conditions(self, model: Any, xt: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the network is given beside noisy maps and time steps: no class, and an empty prompt."""
        conditions = {}
        if model.config.null_class is not None:
            conditions["class_labels"] = torch.full((xt.shape[0],), model.config.null_class, device=xt.device)
        if model.empty_prompt is not None:
            conditions["encoder_hidden_states"] = model.empty_prompt.to(xt.dtype).expand(xt.shape[0], -1, -1)
        return conditions

    @abstractmethod
    def call(self, model: Any, xt: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The activation at the last tap of noisy maps `(B, c, h, w)` at time steps `(B,)`."""

    @abstractmethod
    def predict_conditioned(
        self, model: Any, xt: torch.Tensor, timesteps: torch.Tensor, added: torch.Tensor | None
    ) -> torch.Tensor:
        """As [`~DiffusersAdapter.predict`], with what is added to the time embedding, `(B, E)`, and self-conditioning."""

    @abstractmethod
    def conditioning_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """The tap whose features self-conditioning takes: the one that is asked for, or the middle."""

    @abstractmethod
    def conditioning_widths(self, network: Any) -> tuple[int, int]:
        """Widths of the features at that tap, and of the time embedding."""


class UNetAdapter(DiffusersAdapter):
    """`UNet2DModel` and `UNet2DConditionModel` of diffusers. Taps: residual and attention blocks, `(B, C, H, W)`."""

    def taps(self, network: Any) -> list[str]:
        return unet_taps(network)

    def default_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """Return the 6th block of the up path, of an EDM the 7th, as in the public code, or the middle one of fewer."""
        up = [tap for tap in block_ends(taps) if tap.startswith("up_blocks.")]
        number = config.noise_process.default_up_block
        return up[number - 1] if len(up) >= number else up[(len(up) - 1) // 2]

    def cut(self, network: Any, tap: str) -> None:
        cut_unet(network, tap)

    def call(self, model: Any, xt: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        if model.self_conditioning is None:
            return model.denoiser(xt, timesteps, **self.conditions(model, xt)).sample
        return self.predict_conditioned(model, xt, timesteps, None)

    def predict_conditioned(
        self, model: Any, xt: torch.Tensor, timesteps: torch.Tensor, added: torch.Tensor | None
    ) -> torch.Tensor:
        return run_unet(model.denoiser, xt, timesteps, added, model.self_conditioning)

    def conditioning_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """The end of the middle block: the up path as a whole is told."""
        middle = [tap for tap in taps if tap.startswith("mid_block.")][-1]
        if config.self_conditioning_layer not in (None, middle):
            raise ValueError(
                f"self_conditioning_layer={config.self_conditioning_layer!r} is not possible; of a UNet it must be "
                f"{middle!r}, the end of its middle block."
            )
        return middle

    def conditioning_widths(self, network: Any) -> tuple[int, int]:
        return network.config.block_out_channels[-1], network.time_embedding.linear_2.out_features


class DiTAdapter(DiffusersAdapter):
    """`DiTTransformer2DModel` of diffusers. Taps: transformer blocks, `(B, N, C)`."""

    def build(self, config: DDAEConfig) -> Any:
        network = super().build(config)
        if config.self_conditioning or config.augmentation_labels:
            for block in network.transformer_blocks:
                block.norm1.emb = ConditionedEmbedding(block.norm1.emb)
        return network

    def start(self, network: Any) -> None:
        start_dit(network)

    def taps(self, network: Any) -> list[str]:
        return [f"transformer_blocks.{i}" for i in range(len(network.transformer_blocks))]

    def default_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """Return the middle block: of DiT-XL/2's 28 `transformer_blocks.13`, which the public code calls layer-13 too."""
        return taps[(len(taps) - 1) // 2]

    def cut(self, network: Any, tap: str) -> None:
        network.transformer_blocks = network.transformer_blocks[: int(tap.split(".")[1]) + 1]
        network.norm_out = network.proj_out_1 = network.proj_out_2 = None

    def call(self, model: Any, xt: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Its own forward cannot end early: the last layer folds tokens back into a map."""
        conditions = self.conditions(model, xt)
        return run_dit(model.denoiser, xt, timesteps, **conditions, self_conditioning=model.self_conditioning)[0]

    def predict_conditioned(
        self, model: Any, xt: torch.Tensor, timesteps: torch.Tensor, added: torch.Tensor | None
    ) -> torch.Tensor:
        labels = self.conditions(model, xt)["class_labels"]
        hidden, given = run_dit(model.denoiser, xt, timesteps, labels, added, model.self_conditioning)
        return fold_dit(model.denoiser, hidden, given, labels)

    def conditioning_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """Any block but the last; by default the middle one."""
        name = config.self_conditioning_layer
        if name is not None and name not in taps[:-1]:
            raise ValueError(
                f"self_conditioning_layer={name!r} is not possible; choose one of {', '.join(taps[:-1])}, which others follow."
            )
        return name or self.default_tap(config, taps)

    def conditioning_widths(self, network: Any) -> tuple[int, int]:
        return network.inner_dim, network.inner_dim


class LDAEAdapter(NetworkAdapter):
    """Our own [`LDAEModel`]. Taps: its blocks, `(B, N, C)`, read through its LayerNorm as its features are."""

    def build(self, config: DDAEConfig) -> Any:
        return LDAEModel(config.ldae_config)

    def taps(self, network: Any) -> list[str]:
        return [f"layers.{i}" for i in range(len(network.layers))]

    def default_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """The block after which the l-DAE itself reads features."""
        given = config.denoiser_config or {}
        return taps[(given["feature_layer"] or given["num_hidden_layers"]) - 1]

    def cut(self, network: Any, tap: str) -> None:
        network.layers = network.layers[: int(tap.split(".")[1]) + 1]

    def shapes(self, model: Any, taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The same at every block."""
        config = model.denoiser.config
        return dict.fromkeys(taps, (config.num_patches, config.hidden_size))

    def run(self, model: Any, x0: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """As of [`NetworkAdapter.run`], with images `(B, C, H, W)` and noise `(B, N, d)` of their latents."""
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
