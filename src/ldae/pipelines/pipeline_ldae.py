"""A diffusers pipeline of l-DAE, which generates images and denoises given ones (Fig. 8)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from ldae.models.pretraining_ldae import LDAEForPreTraining
from ldae.models.tokenizer_ldae import unpatchify
from ldae.pipelines.images import OUTPUT_TYPES, Generators, Images, Labels, from_pixels, require_known
from ldae.pipelines.run_folder import RunFolderPipeline


class LDAEPipeline(RunFolderPipeline):
    """A pipeline that generates images with any model of the trajectory, and denoises given ones.

    [`~LDAEPipeline.from_pretrained`] reads it from a run's folder (`config.json`, `model.safetensors` and
    `scheduler/`) or from a Hub repository of the same layout.

    l-DAE is made to learn features. If even the noisiest latents show the image (gamma = 1: `"linear_sigma"` and
    `"constant"`), the model never learnt to start from pure noise, and samples are poor.

    Args:
        model ([`LDAEForPreTraining`]): The denoiser, with its tokenizer.
        scheduler ([`LDAEScheduler`]): The model's noise schedule. A scheduler of diffusers with the same schedule may
            replace it: `pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`.

    Raises:
        ValueError: If the scheduler disagrees with the model's configuration, now or in a later call.

    Example:
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
    """

    model_class = LDAEForPreTraining
    model: LDAEForPreTraining
    _callback_tensor_inputs = ["latents", "pred_original_sample"]
    _guidance_scale, _num_timesteps, _interrupt = 1.0, 0, False

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
        """Generate images.

        Args:
            batch_size (`int`, *optional*): Number of images; by default as many as there are class labels, latents or
                generators, else 1.
            class_labels (`int` or `Sequence[int]`, *optional*): Class of all images, or of each; the null class, which
                is `config.num_class_embeds`, by default. Only for a class-conditional model.
            guidance_scale (`float`, defaults to 1): s of classifier-free guidance, null + s (class - null) in the
                space of the prediction; 1 is no guidance. Only with `class_labels`.
            num_inference_steps (`int`, *optional*): Number of steps; by default 50, or 1 for a constant schedule.
            eta (`float`, defaults to 0): From 0, deterministic (DDIM), to 1, ancestral (DDPM).
            sampler (`str`, *optional*): Sets eta: `"ddim"` (0), or `"ancestral"` (1), by default in all T steps.
            generator (`torch.Generator` or a list of one for each image, *optional*): Generator of all noise. With a
                list, an image does not depend on the others in its batch.
            latents (`torch.Tensor` of shape `(B, N, d)`, *optional*): Standard normal noise to start from; drawn by
                default.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` `(B, H, W, C)` or `"pt"` `(B, C, H, W)`, the last
                two in [0, 1], or `"latent"`, the clean latents `(B, N, d)`.
            return_dict (`bool`, defaults to `True`): Return an `ImagePipelineOutput`, or else a tuple.
            callback_on_step_end (`Callable`, *optional*): Called after each step with the pipeline, the step's number,
                t and a dict of the requested tensors; `latents` in the dict that it returns replaces the chain's. It
                may set `pipe._interrupt = True` to skip the remaining steps.
            callback_on_step_end_tensor_inputs (`Sequence[str]`, defaults to `("latents",)`): The requested tensors:
                `"latents"`, and `"pred_original_sample"`, the clean latents that the step predicted.

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple of them.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        require_known("output_type", [output_type], [*OUTPUT_TYPES, "latent"])
        require_known(
            "callback_on_step_end_tensor_inputs", callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        self.check_scheduler()
        batch_size = self._count_images(class_labels, generator, batch_size, latents=latents)
        labels = self._prepare_labels(class_labels, batch_size, guidance_scale)  # (B,) or None
        self._guidance_scale, self._interrupt = guidance_scale, False
        _, eta = self.resolve_sampler(sampler, eta)
        if num_inference_steps is None:
            num_inference_steps = self.steps_by_default(sampler)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        options = self._step_options(eta=eta, generator=generator)
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

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the last call; a callback may set `pipe._guidance_scale`."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """`True` if a callback ended the chain early."""
        return self._interrupt

    @property
    def most_steps(self) -> int:
        """The largest number of steps: T, or 1 for the one level of a constant schedule."""
        return 1 if self.model.config.noise_schedule == "constant" else super().most_steps

    # -- a step --

    def noise_scales(self, timestep: int) -> tuple[float, float]:
        """Return gamma_t and sigma_t, the factors of clean latents and noise."""
        corruption = self.model.ldae.corruption
        return corruption.gammas[timestep].item(), corruption.sigmas[timestep].item()

    def _denoise_once(
        self, pixels: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ldae, size = self.model.ldae, self.model.config.image_size
        self._guidance_scale = 1.0
        zt = ldae.corruption(ldae.encode(pixels), eps, t)  # (B, N, d)
        prediction = self._predict(zt, t, labels)
        with torch.autocast(zt.device.type, enabled=False):
            noisy = ldae.tokenizer.decode_images(zt, size, size)
            return self.model.predicted_images(prediction, zt, t), noisy

    def _predict(self, zt: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Run the network on `(B, N, d)`, with guidance; return its prediction in float32."""
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
        """Turn a prediction into the scheduler's: the noise, or the clean latents `(B, N, d)`."""
        if self.model.config.prediction_target == "noise":
            return prediction
        with torch.autocast(zt.device.type, enabled=False):
            return self.model.predicted_latents(prediction, zt, t.reshape(1))

    def _decode(self, latents: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """Decode clean latents `(B, N, d)`, and add the part of a predicted image that they cannot hold."""
        config, tokenizer = self.model.config, self.model.ldae.tokenizer
        size = (config.image_size, config.image_size)
        with torch.autocast(latents.device.type, enabled=False):
            pixels = tokenizer.decode_images(latents, *size)
            if config.prediction_target == "image":
                rest = prediction - tokenizer.decode(tokenizer.encode(prediction))  # (B, N, D)
                pixels = pixels + unpatchify(rest, config.patch_size, *size)
        return pixels
