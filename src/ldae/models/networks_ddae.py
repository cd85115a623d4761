"""Adapters around the networks that DDAE reads features from: how each is built, run, tapped and cut."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from .configuration_ddae import DDAEConfig
from .diffusers_ddae import ConditionedEmbedding, build_network, diffusers_class, set_dit_rules
from .modeling_ldae import LDAEModel
from .noise_ddae import NOISE_PROCESSES, NoiseProcess
from .taps_ddae import block_ends, record


class PassThrough(nn.Module):
    """The replacement of a block that was cut off: it returns its first input, in the form of the block's output."""

    def forward(self, hidden: torch.Tensor, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        return hidden if return_dict is None else (hidden,)


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
        """Corrupt a clean input at time steps `(B,)` or a shared `(1,)`, and return the activation at the last tap."""

    def noise_shape(self, model: Any, pixel_values: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of the noise of one of the images `(B, C, H, W)`: that of the network's input."""
        height, width = (side // model.config.vae_stride for side in pixel_values.shape[2:])
        return model.denoiser.config.in_channels, height, width

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
        xt = model.corruption(x0, noise, timesteps).to(next(model.denoiser.parameters()).dtype)
        return self.activation(model, xt, model.corruption.network_times(timesteps).expand(xt.shape[0]))

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
        places = [(f"down_blocks.{i}", block) for i, block in enumerate(network.down_blocks)]
        places += [("mid_block", network.mid_block)] if network.mid_block is not None else []
        places += [(f"up_blocks.{i}", block) for i, block in enumerate(network.up_blocks)]
        taps = []
        for place, block in places:
            pairs = zip_longest(block.resnets, getattr(block, "attentions", None) or [])
            for j, (resnet, attention) in enumerate(pairs):
                taps += [f"{place}.resnets.{j}"] if resnet is not None else []
                taps += [f"{place}.attentions.{j}"] if attention is not None else []
        return taps

    def default_tap(self, config: DDAEConfig, taps: Sequence[str]) -> str:
        """Return the 6th block of the up path (7th for EDM), as the public code does, or the middle one of fewer."""
        up = [tap for tap in block_ends(taps) if tap.startswith("up_blocks.")]
        number = config.noise_process.default_up_block
        return up[number - 1] if len(up) >= number else up[(len(up) - 1) // 2]

    def cut(self, network: Any, tap: str) -> None:
        """Cut the network, whose own forward then returns the tap's activation.

        Later blocks are removed from its lists; layers that cannot be removed are replaced by [`PassThrough`].
        """
        *place, kind, index = tap.split(".")
        j = int(index)
        if place[0] != "up_blocks":
            network.up_blocks = nn.ModuleList()
        else:
            network.up_blocks = network.up_blocks[: int(place[1]) + 1]
        if place[0] == "down_blocks":
            network.down_blocks = network.down_blocks[: int(place[1]) + 1]
            network.mid_block = None
        block: Any = network.get_submodule(".".join(place))
        block.resnets = block.resnets[: j + 1]
        attentions = getattr(block, "attentions", None)
        if attentions is not None:
            # A middle block pairs each attention with the residual block after it, the others with the one before.
            middle = place[0] == "mid_block"
            block.attentions = attentions[: j + 1] if kind == "attentions" else attentions[:j]
            if middle and kind == "attentions":
                block.resnets.append(PassThrough())
            elif not middle and kind == "resnets":
                block.attentions.append(PassThrough())
        for sampler in ("downsamplers", "upsamplers"):
            if getattr(block, sampler, None) is not None:
                setattr(block, sampler, None)
        network.conv_norm_out = network.conv_act = network.conv_out = PassThrough()

    def conditioned_forward(
        self, model: Any, xt: torch.Tensor, times: torch.Tensor, added: torch.Tensor | None
    ) -> torch.Tensor:
        unet = model.denoiser
        embedding = unet.time_embedding(unet.time_proj(times).to(unet.dtype))  # (B, E)
        if added is not None:
            embedding = embedding + added
        hidden = unet.conv_in(2 * xt - 1 if unet.config.center_input_sample else xt)
        skips = [hidden]
        for block in unet.down_blocks:
            hidden, outputs = block(hidden_states=hidden, temb=embedding)
            skips += outputs
        if unet.mid_block is not None:
            hidden = unet.mid_block(hidden, embedding)
        if model.self_conditioning is not None:
            embedding = embedding + model.self_conditioning(hidden)
        for block in unet.up_blocks:
            count = len(block.resnets)
            hidden = block(hidden, tuple(skips[-count:]), embedding)
            del skips[-count:]
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))

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
        return self._run_blocks(model, xt, times, None)[0]

    def conditioned_forward(
        self, model: Any, xt: torch.Tensor, times: torch.Tensor, added: torch.Tensor | None
    ) -> torch.Tensor:
        dit, labels = model.denoiser, self.conditions(model, xt)["class_labels"]
        hidden, given = self._run_blocks(model, xt, times, added)
        embedding = dit.transformer_blocks[0].norm1.emb(given, labels, hidden_dtype=hidden.dtype)  # (B, E)
        shift, scale = dit.proj_out_1(F.silu(embedding)).chunk(2, dim=1)
        patches = dit.proj_out_2(dit.norm_out(hidden) * (1 + scale[:, None]) + shift[:, None])  # (B, N, P * P * c)
        side, p = int(hidden.shape[1] ** 0.5), dit.patch_size
        patches = patches.unflatten(1, (side, side)).unflatten(3, (p, p, -1))  # (B, side, side, P, P, c)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _run_blocks(
        self, model: Any, xt: torch.Tensor, times: torch.Tensor, added: torch.Tensor | None
    ) -> tuple[torch.Tensor, Any]:
        """Return tokens `(B, N, C)` after the last block, and the times, with additions, for the layer after it."""
        dit, conditioning = model.denoiser, model.self_conditioning
        labels = self.conditions(model, xt)["class_labels"]
        hidden = dit.pos_embed(xt)  # (B, N, C)
        given: Any = times if added is None else (times, added)
        for index, block in enumerate(dit.transformer_blocks):
            if torch.is_grad_enabled() and dit.gradient_checkpointing:
                inputs = (None, None, None, given, None, labels)
                hidden = dit._gradient_checkpointing_func(block, hidden, *inputs)
            else:
                hidden = block(hidden, timestep=given, class_labels=labels)
            if conditioning is not None and conditioning.layer == f"transformer_blocks.{index}":
                own = conditioning(hidden)
                given = (times, own if added is None else added + own)
        return hidden, given

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
