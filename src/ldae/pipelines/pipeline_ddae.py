"""A diffusers pipeline of DDAE, which generates images with the weights that features are read from."""

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from ldae.models.noise_ddae import NoiseProcess
from ldae.models.pretraining_ddae import DDAEForPreTraining
from ldae.pipelines.images import OUTPUT_TYPES, Generators, Images, from_pixels, require_known
from ldae.pipelines.run_folder import RunFolderPipeline
from ldae.schedulers.samplers import euler_sample, heun_sample
from ldae.schedulers.scheduling_ldae import build_scheduler


class DDAEPipeline(RunFolderPipeline):
    """A pipeline that generates images with a pre-trained DDAE, and denoises given ones.

    [`~RunFolderPipeline.from_pretrained`] reads it from a run's folder (`config.json`, `model.safetensors` and
    `scheduler/`) or from a Hub repository of the same layout.

    Args:
        model ([`DDAEForPreTraining`]): The denoiser.
        scheduler (`DDIMScheduler`): Its noise schedule. Another scheduler of diffusers with the same schedule may
            replace it: `pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)`.

    Raises:
        ValueError: If the scheduler disagrees with the model's configuration, now or in a later call.

    Example:
        >>> import torch
        >>> from ldae import DDAEConfig, DDAEForPreTraining, DDAEPipeline
        >>> from ldae.schedulers.scheduling_ldae import build_scheduler
        >>> unet = {"sample_size": 16, "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1}
        >>> unet |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
        >>> model = DDAEForPreTraining(DDAEConfig(denoiser_config=unet)).eval()
        >>> pipe = DDAEPipeline(model, build_scheduler(model.config))
        >>> pipe.set_progress_bar_config(disable=True)
        >>> images = pipe(num_inference_steps=5, generator=[torch.Generator().manual_seed(i) for i in range(3)]).images
        >>> [image.size for image in images]
        [(16, 16), (16, 16), (16, 16)]
    """

    model_class = DDAEForPreTraining
    num_timesteps = 0  # of the last call

    @property
    def samplers(self) -> tuple[str, ...]:  # type: ignore[override]
        """Samplers of the model's noise process, the default first."""
        return self.noise_process.samplers

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        eta: float = 0.0,
        sampler: str | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Images]:
        """Generate images.

        Args:
            batch_size (`int`, *optional*): Number of images; by default as many as there are generators or latents,
                else 1.
            class_labels (*optional*): Refused, as the model is trained without labels.
            guidance_scale (`float`, defaults to 1): Other values are refused for the same reason.
            num_inference_steps (`int`, *optional*): Number of steps; by default 50 for `"ddim"`, 1000 (at most T) for
                `"ancestral"`, and 18 for `"heun"`, whose steps call the network twice, except for the last.
            eta (`float`, defaults to 0): From 0, deterministic (DDIM), to 1, ancestral; only for a DDPM without
                `sampler`.
            sampler (`str`, *optional*): `"ddim"`, deterministic and of first order; `"ancestral"`, with fresh noise in
                each step; `"heun"`, deterministic and of second order. The default is `"heun"` for EDM and `"ddim"`
                for DDPM. An EDM runs all three at its own noise levels. A DDPM runs Heun's method at EDM's levels (see
                [`DDAEForPreTraining.denoise_at`]), and its estimates of the clean image stay in [-1, 1].
            generator (`torch.Generator` or a list of one for each image, *optional*): Generator of all noise. With a
                list, an image does not depend on the others in its batch.
            latents (`torch.Tensor` of shape `(B, C, H, W)`, *optional*): Standard normal noise to start from; drawn by
                default.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` `(B, H, W, C)` or `"pt"` `(B, C, H, W)`, the last
                two in [0, 1].
            return_dict (`bool`, defaults to `True`): Return an `ImagePipelineOutput`, or else a tuple.

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple of these.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        self._prepare_labels(class_labels, 1, guidance_scale)
        require_known("output_type", [output_type], OUTPUT_TYPES)
        self.check_scheduler()
        chosen, eta = self.resolve_sampler(sampler, eta)
        if num_inference_steps is not None and num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={num_inference_steps} is too small; give 1 or more.")
        self.num_timesteps = num_inference_steps or self.steps_by_default(sampler)
        count = self._count_images(None, generator, batch_size, latents=latents)
        xt = self._normal("latents", latents, count, generator)  # (B, C, H, W)
        self._load_onto_device()
        if self.noise_process.samples_by_scheduler and chosen != "heun":
            xt = self._run_scheduler(xt, eta, generator)
        else:
            xt = self._run_levels(xt, chosen, eta, generator)
        images = from_pixels(xt, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images) if return_dict else (images,)  # type: ignore[arg-type] # it names no tensor

    @property
    def noise_process(self) -> NoiseProcess:
        """The model's noise process."""
        return self.model.ddae.corruption

    def noise_scales(self, timestep: int) -> tuple[float, float]:
        """Return the factors of clean images and noise at t: gamma_t and sigma_t, for EDM 1 and a noise level."""
        process = self.noise_process
        gamma, sigma = process.scales(process.times_at(torch.tensor([timestep])))
        return gamma.item(), sigma.item()

    def _denoise_once(
        self, pixels: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        process, times = self.noise_process, self.noise_process.times_at(t)
        noisy = process.add_noise(pixels, eps, times)
        prediction = process.predict(self.model.denoise, noisy, times).float()
        return process.reconstruct(prediction, noisy, times), noisy

    def _run_levels(self, noise: torch.Tensor, sampler: str, eta: float, generator: Any) -> torch.Tensor:
        """Turn standard normal noise into images by D(x; sigma), both `(B, C, H, W)`."""
        levels = self.noise_process.sampling_levels(self.num_timesteps).tolist()
        x = noise * levels[0]
        if sampler == "heun":
            return heun_sample(self._denoise, x, levels, self.progress_bar)

        def draw_noise() -> torch.Tensor:
            return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)

        return euler_sample(self._denoise, x, levels, eta, draw_noise, self.progress_bar)

    def _denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Estimate clean images by D(x; sigma), clipped as the scheduler clips its own estimates."""
        denoised, c = self.model.denoise_at(x, sigma), self.scheduler.config
        return denoised.clamp(-c.clip_sample_range, c.clip_sample_range) if c.get("clip_sample") else denoised

    def _run_scheduler(self, xt: torch.Tensor, eta: float, generator: Any) -> torch.Tensor:
        """Turn standard normal noise into images by the scheduler, both `(B, C, H, W)`."""
        self.scheduler.set_timesteps(self.num_timesteps, device=self._execution_device)
        # Noise that fits the clean image after clipping, as in DDPM's posterior; with diffusers' default the two
        # disagree, and samples get worse with more steps.
        options = self._step_options(eta=eta, generator=generator, use_clipped_model_output=True)
        xt = xt * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(xt, t)
            prediction = self.model.denoise(scaled, t.reshape(1)).float()
            xt = self.scheduler.step(prediction, t, xt, **options).prev_sample
        return xt

    @property
    def most_steps(self) -> int:
        """The largest number of steps: the scheduler's T, or no limit for EDM's levels."""
        return super().most_steps if self.noise_process.samples_by_scheduler else 2**31

    def check_scheduler(self) -> None:
        """Check that the scheduler has the model's noise schedule and prediction type.

        Raises:
            ValueError: If either differs.
        """
        if self.noise_process.samples_by_scheduler:
            super().check_scheduler()
            return
        ours, given = build_scheduler(self.model.config).config, self.scheduler.config
        for name in ("sigma_min", "sigma_max", "sigma_data", "rho"):
            if given.get(name) != ours[name]:
                raise ValueError(
                    f"scheduler={type(self.scheduler).__name__} does not fit: its {name} is {given.get(name)}, the "
                    f"model's {ours[name]}. Make it with build_scheduler(model.config)."
                )
