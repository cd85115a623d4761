"""l-DAE as a diffusers pipeline: images from noise, and given images denoised (Fig. 8)."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from ldae.models.modeling_ldae import LDAEForPreTraining
from ldae.models.tokenizer_ldae import unpatchify
from ldae.pipelines.images import OUTPUT_TYPES, Images, from_pixels, to_pixels
from ldae.pipelines.loading import RunFolderPipeline
from ldae.schedulers.scheduling_ldae import LDAEScheduler


Generators = torch.Generator | list[torch.Generator] | None
Labels = int | Sequence[int] | torch.Tensor | None


@dataclass
class LDAEDenoisingOutput(BaseOutput):
    """
    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): The denoised images.
        noisy_images (as `images`): The noisy ones; of an l-DAE what its noisy latents look like, shown by the tokenizer.
    """

    images: Images
    noisy_images: Images


class LDAEPipeline(RunFolderPipeline):
    """
    Generates images with any model of the trajectory, and denoises given ones.

    It lives in a run's folder: [`~LDAEPipeline.from_pretrained`] reads `config.json`, `model.safetensors` and
    `scheduler/` there, or in a Hub repository of the same layout.

    l-DAE is made to learn features. Where even the noisiest latents show the image (gamma = 1: `"linear_sigma"` and
    `"constant"`) the model never learnt to begin with noise alone, and its samples show it.

    Args:
        model ([`LDAEForPreTraining`]): The denoiser, with its tokenizer.
        scheduler ([`LDAEScheduler`]): The model's noise schedule. One of diffusers' own may take its place where it says
            the same: `pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`.

    Raises:
        ValueError: for a scheduler that disagrees with the model's configuration, here or when it is used.

    Example:

    ```python
    >>> import torch
    >>> from ldae import LDAEConfig, LDAEForPreTraining, LDAEPipeline, LDAEScheduler
    >>> model = LDAEForPreTraining(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)).eval()
    >>> pipe = LDAEPipeline(model, LDAEScheduler.from_ldae_config(model.config))
    >>> pipe.set_progress_bar_config(disable=True)
    >>> generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    >>> images = pipe(num_inference_steps=5, generator=generators).images
    >>> [image.size for image in images]
    [(16, 16), (16, 16), (16, 16)]
    >>> pipe.denoise(images, timestep=300, output_type="pt").noisy_images.shape
    torch.Size([3, 3, 16, 16])

    ```
    """

    model: LDAEForPreTraining
    model_cpu_offload_seq = "model"  # type: ignore[assignment] # diffusers leaves it None for want of a type
    _callback_tensor_inputs = ["latents", "pred_original_sample"]

    def __init__(self, model: LDAEForPreTraining, scheduler: LDAEScheduler):
        super().__init__(model, scheduler)
        self._guidance_scale, self._num_timesteps, self._interrupt = 1.0, 0, False

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        eta: float = 0.0,
        sampler: str | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Images]:
        """
        Generate images.

        Args:
            batch_size (`int`, *optional*): How many; by default as many as there are class labels, latents or
                generators, else 1.
            class_labels (`int` or `Sequence[int]`, *optional*): Class of all images, or of each; the null class, which
                is `config.num_class_embeds`, by default. Only for a class-conditional model.
            guidance_scale (`float`, defaults to 1): s of classifier-free guidance, null + s (class - null) in the space
                of the prediction; 1 is no guidance. Only with `class_labels`.
            num_inference_steps (`int`, *optional*): Steps of the chain; by default 50, or the 1 of a constant schedule.
            eta (`float`, defaults to 0): From 0, deterministic (DDIM), to 1, ancestral (DDPM).
            sampler (`str`, *optional*): In place of eta: `"ddim"` (0), or `"ancestral"` (1), by default in all T steps.
            generator (`torch.Generator` or a list of one for each image, *optional*): Of all randomness. With a list,
                an image does not depend on the others of its batch.
            latents (`torch.Tensor` of shape `(B, N, d)`, *optional*): Standard normal noise to start from; drawn by
                default.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` `(B, H, W, C)` or `"pt"` `(B, C, H, W)`, the last two
                in [0, 1], or `"latent"`, the clean latents `(B, N, d)`.
            return_dict (`bool`, defaults to `True`): Whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end (`Callable`, *optional*): Called after each step with the pipeline, the step's number, t
                and a dict of the tensors that it asks for; `latents` in the dict that it returns replaces them. It may
                set `pipe._interrupt = True`, which leaves out the steps that are left.
            callback_on_step_end_tensor_inputs (`Sequence[str]`, defaults to `("latents",)`): What it asks for; there is
                also `"pred_original_sample"`, the clean latents as this step predicted them.

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple of them.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        _require_known("output_type", [output_type], [*OUTPUT_TYPES, "latent"])
        _require_known(
            "callback_on_step_end_tensor_inputs", callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        self.check_scheduler()
        batch_size = _count_images(batch_size, class_labels, latents, generator)
        labels = self._prepare_labels(class_labels, batch_size, guidance_scale)  # (B,) or None
        self._guidance_scale, self._interrupt = guidance_scale, False
        _, eta = self.resolve_sampler(sampler, eta)
        self._set_timesteps(num_inference_steps, sampler)
        options = self._step_options(eta, generator)
        zt = self._normal("latents", latents, batch_size, generator) * self.scheduler.init_noise_sigma  # (B, N, d)
        self._load_onto_device()

        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as bar:
            for i, t in enumerate(timesteps):
                if self._interrupt:
                    continue
                scaled = self.scheduler.scale_model_input(zt, t)
                prediction = self._predict(scaled, t, labels)  # (B, N, output_dim)
                step = self.scheduler.step(self._as_model_output(prediction, scaled, t), t, zt, **options)
                zt = step.prev_sample
                if callback_on_step_end is not None:
                    tensors = {"latents": zt, "pred_original_sample": step.get("pred_original_sample")}
                    asked = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    zt = callback_on_step_end(self, i, t, asked).pop("latents", zt)
                bar.update()
        images = zt if output_type == "latent" else from_pixels(self._decode(zt, prediction), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images) if return_dict else (images,)  # type: ignore[arg-type] # it names no tensor

    @torch.no_grad()
    def denoise(
        self,
        images: PIL.Image.Image | Sequence[PIL.Image.Image] | torch.Tensor,
        timestep: int,
        generator: Generators = None,
        noise: torch.Tensor | None = None,
        class_labels: Labels = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> LDAEDenoisingOutput | tuple[Images, Images]:
        """
        Add noise to images and take it away by one prediction, as in training (Fig. 8).

        Args:
            images (`PIL.Image.Image`, a sequence of them, or `torch.Tensor` of shape `(B, C, H, W)`): Pictures, which are
                resized and cropped as in training, or pixels in [0, 1] at the model's `image_size`.
            timestep (`int`): t, how much noise, from 0 to T - 1.
            generator (`torch.Generator` or a list of one for each image, *optional*): Of the noise.
            noise (`torch.Tensor` of shape `(B, N, d)`, *optional*): The standard normal noise itself.
            class_labels: As of the call.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`, as of the call.
            return_dict (`bool`, defaults to `True`): Whether to return an [`LDAEDenoisingOutput`] or a tuple.

        Returns:
            [`LDAEDenoisingOutput`] with `images` and `noisy_images`, or a tuple of these.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        config, trunk = self.model.config, self.model.ldae
        _require_known("output_type", [output_type], OUTPUT_TYPES)
        if not 0 <= timestep < config.num_train_timesteps:
            raise ValueError(f"timestep={timestep} is not possible; give 0 to {config.num_train_timesteps - 1}.")
        self._load_onto_device()
        pixels = to_pixels(images, config.image_size, config.num_channels).to(self._execution_device)
        labels = self._prepare_labels(class_labels, len(pixels), guidance_scale=1.0)
        eps = self._normal("noise", noise, len(pixels), generator)  # (B, N, d)
        t = torch.full((1,), timestep, device=pixels.device)
        self._guidance_scale = 1.0
        zt = trunk.corruption(trunk.encode(pixels), eps, t)  # (B, N, d)
        prediction = self._predict(zt, t, labels)
        with torch.autocast(zt.device.type, enabled=False):
            noisy = trunk.tokenizer.decode_images(zt, config.image_size, config.image_size)
            denoised = self.model.predicted_images(prediction, zt, t)
        shown = (from_pixels(denoised, output_type), from_pixels(noisy, output_type))
        self.maybe_free_model_hooks()
        return LDAEDenoisingOutput(*shown) if return_dict else shown

    @property
    def guidance_scale(self) -> float:
        """Of the call that runs or ran last; a callback may set `pipe._guidance_scale`."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the call that runs or ran last."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback ended the chain early."""
        return self._interrupt

    # -- a step --------------------------------------------------------------------------------------------------------

    def _predict(self, zt: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """What the network predicts from `(B, N, d)`, with guidance, in float32."""
        timesteps = t.reshape(1).to(zt.device, torch.long)
        s = self._guidance_scale
        if labels is None or s == 1:
            return self.model.denoise(zt, timesteps, labels).float()
        classes: Any = self.model.config.num_class_embeds
        null = torch.full_like(labels, classes)  # (B,)
        both = self.model.denoise(torch.cat([zt, zt]), timesteps, torch.cat([labels, null])).float()
        of_class, of_null = both.chunk(2)  # (B, N, output_dim) each
        return of_null + s * (of_class - of_null)

    def _as_model_output(self, prediction: torch.Tensor, zt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """A prediction in the words of the scheduler: the noise, or the clean latents `(B, N, d)`."""
        if self.model.config.prediction_target == "noise":
            return prediction
        with torch.autocast(zt.device.type, enabled=False):
            return self.model.predicted_latents(prediction, zt, t.reshape(1))

    def _decode(self, latents: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """Clean latents `(B, N, d)` to pixels. What latents do not hold, a predicted image (the last one) does."""
        config, tokenizer = self.model.config, self.model.ldae.tokenizer
        size = (config.image_size, config.image_size)
        with torch.autocast(latents.device.type, enabled=False):
            pixels = tokenizer.decode_images(latents, *size)
            if config.prediction_target == "image":
                rest = prediction - tokenizer.decode(tokenizer.encode(prediction))  # (B, N, D)
                pixels = pixels + unpatchify(rest, config.patch_size, *size)
        return pixels

    # -- before the chain ----------------------------------------------------------------------------------------------

    def _prepare_labels(self, class_labels: Labels, count: int, guidance_scale: float) -> torch.Tensor | None:
        """Classes `(B,)`, or `None` for the null class."""
        classes = self.model.config.num_class_embeds
        if classes is None:
            for name, given in (("class_labels", class_labels), ("guidance_scale", guidance_scale)):
                if given is not None and (name, given) != ("guidance_scale", 1):
                    raise ValueError(
                        f"{name}={given} is not possible with num_class_embeds=None: this model is trained without "
                        "labels, and has no class to be guided to. Leave it out."
                    )
            return None
        unguided = self.model.config.class_dropout_prob == 0
        if class_labels is None or (unguided and guidance_scale != 1):
            if unguided:
                raise ValueError(
                    "class_dropout_prob=0: this model never saw the null class, so it can neither generate without "
                    "class_labels nor with a guidance_scale other than 1."
                )
            if guidance_scale != 1:
                raise ValueError(
                    f"guidance_scale={guidance_scale} needs class_labels: guidance leads from the null class to them."
                )
            return None
        labels = torch.as_tensor(class_labels, device=self._execution_device).long().reshape(-1)
        if labels.min() < 0 or labels.max() > classes:
            raise ValueError(
                f"class_labels={class_labels} is not possible; the classes are 0 to {classes - 1}, and {classes} is the "
                "null class."
            )
        return labels.expand(count)

    def _set_timesteps(self, num_inference_steps: int | None, sampler: str | None) -> None:
        if num_inference_steps is None:
            constant = self.model.config.noise_schedule == "constant"
            num_inference_steps = 1 if constant else self.steps_by_default(sampler)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)

    def _step_options(self, eta: float, generator: Generators) -> dict[str, Any]:
        """Those of `scheduler.step`; not every scheduler of diffusers takes both."""
        known = inspect.signature(self.scheduler.step).parameters
        if eta and "eta" not in known:
            raise ValueError(f"eta={eta} is not possible with a {type(self.scheduler).__name__}; leave it out.")
        return {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in known}

    def _normal(self, name: str, given: torch.Tensor | None, count: int, generator: Generators) -> torch.Tensor:
        """Standard normal noise `(B, N, d)` in float32: the given one, or drawn."""
        shape = (count, self.model.config.num_patches, self.model.config.latent_dim)
        device = self._execution_device
        if given is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if given.shape != shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)}; it must be (B, N, d) = {shape}.")
        return given.to(device, torch.float32)

    def _load_onto_device(self) -> None:
        """Where `enable_model_cpu_offload` keeps the model away: its hook waits for a forward, which is not called."""
        hook = getattr(self.model, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.model)


def _require_known(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = [value for value in given if value not in known]
    if unknown:
        raise ValueError(f"{name}={unknown[0]!r} is unknown; choose {', '.join(known)}.")


def _count_images(
    batch_size: int | None, class_labels: Labels, latents: torch.Tensor | None, generator: Generators
) -> int:
    """The number of images that all arguments agree on."""
    counts = {} if batch_size is None else {"batch_size": batch_size}
    if class_labels is not None and not isinstance(class_labels, int):
        counts["class_labels"] = len(class_labels)
    if latents is not None:
        counts["latents"] = len(latents)
    if isinstance(generator, list):
        counts["generator"] = len(generator)
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ValueError(f"the numbers of images disagree ({said}); give as many of each.")
    count = next(iter(counts.values()), 1)
    if count < 1:
        raise ValueError(f"batch_size={count} is not possible; give 1 or more.")
    return count
