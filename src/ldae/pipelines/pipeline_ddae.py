"""A DDAE as a diffusers pipeline: images from noise, by the weights that features are read from."""

import inspect
from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from ldae.models.noise_ddae import NoiseProcess
from ldae.models.pretraining_ddae import DDAEForPreTraining
from ldae.pipelines.images import OUTPUT_TYPES, Images, from_pixels, to_pixels
from ldae.pipelines.loading import RunFolderPipeline
from ldae.pipelines.pipeline_ldae import LDAEDenoisingOutput
from ldae.schedulers.build import build_scheduler
from ldae.schedulers.euler_edm import euler_sample
from ldae.schedulers.heun_edm import heun_sample


class DDAEPipeline(RunFolderPipeline):
    """
    Generates images with a DDAE that was pre-trained here, and denoises given ones.

    It lives in a run's folder: [`~RunFolderPipeline.from_pretrained`] reads `config.json`, `model.safetensors` and
    `scheduler/` there, or in a Hub repository of the same layout.

    Args:
        model ([`DDAEForPreTraining`]): The denoiser.
        scheduler (`DDIMScheduler`): Its noise schedule. Another one of diffusers may take its place where it says the same:
            `pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)`.

    Raises:
        ValueError: for a scheduler that disagrees with the model's configuration, here or when it is used.

    Example:

    ```python
    >>> import torch
    >>> from ldae import DDAEConfig, DDAEForPreTraining, DDAEPipeline
    >>> from ldae.schedulers.build import build_scheduler
    >>> unet = {"sample_size": 16, "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1}
    >>> unet |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    >>> model = DDAEForPreTraining(DDAEConfig(denoiser_config=unet)).eval()
    >>> pipe = DDAEPipeline(model, build_scheduler(model.config))
    >>> pipe.set_progress_bar_config(disable=True)
    >>> images = pipe(num_inference_steps=5, generator=[torch.Generator().manual_seed(i) for i in range(3)]).images
    >>> [image.size for image in images]
    [(16, 16), (16, 16), (16, 16)]

    ```
    """

    model_class = DDAEForPreTraining
    model_cpu_offload_seq = "model"  # type: ignore[assignment] # diffusers leaves it None for want of a type

    @property
    def samplers(self) -> tuple[str, ...]:  # type: ignore[override]
        """Samplers of the model's noise process, the default first."""
        return self.noise_process.samplers

    def __init__(self, model: DDAEForPreTraining, scheduler: DDIMScheduler):
        super().__init__(model, scheduler)
        self.num_timesteps = 0

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        eta: float = 0.0,
        sampler: str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Images]:
        """
        Generate images.

        Args:
            batch_size (`int`, *optional*): How many; by default as many as there are generators or latents, else 1.
            class_labels, guidance_scale: Not possible: the model is trained without labels.
            num_inference_steps (`int`, *optional*): Steps; by default 50 of `"ddim"`, 1000 (at most T) of `"ancestral"`, 18
                of `"heun"`, each but the last of which calls the network twice.
            eta (`float`, defaults to 0): Of a DDPM whose sampler is not named: from 0, deterministic (DDIM), to 1,
                ancestral.
            sampler (`str`, *optional*): `"ddim"`, deterministic and of first order; `"ancestral"`, with fresh noise in each
                step; `"heun"`, deterministic and of second order. By default `"heun"` of EDM, else `"ddim"`. A DDPM is
                sampled by Heun's method at EDM's levels sigma, being told the time step at which sigma_t / gamma_t is
                sigma, with a fraction (see [`DDAEForPreTraining.denoise_at`]), and its estimates of the clean image stay in
                [-1, 1] as in its chain; an EDM is sampled by all three at its levels.
            generator (`torch.Generator` or a list of one for each image, *optional*): Of all randomness. With a list,
                an image does not depend on the others of its batch.
            latents (`torch.Tensor` of shape `(B, C, H, W)`, *optional*): Standard normal noise to start from; drawn by
                default.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` `(B, H, W, C)` or `"pt"` `(B, C, H, W)`, the last two
                in [0, 1].
            return_dict (`bool`, defaults to `True`): Whether to return an `ImagePipelineOutput` or a tuple.

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple of these.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        if class_labels is not None or guidance_scale != 1:
            raise ValueError(
                f"class_labels={class_labels}, guidance_scale={guidance_scale} are not possible: this model is trained "
                "without labels, and has no class to be guided to. Leave them out."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r} is unknown; choose {', '.join(OUTPUT_TYPES)}.")
        self.check_scheduler()
        chosen, eta = self.resolve_sampler(sampler, eta)
        if num_inference_steps is not None and num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={num_inference_steps} is not possible; give 1 or more.")
        self.num_timesteps = num_inference_steps or self.steps_by_default(sampler)
        xt = self._normal("latents", batch_size, latents, generator)  # (B, C, H, W)
        self._load_onto_device()
        if self.noise_process.samples_by_scheduler and chosen != "heun":
            xt = self._chain(xt, eta, generator)
        else:
            xt = self._along_levels(xt, chosen, eta, generator)
        images = from_pixels(xt, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images) if return_dict else (images,)  # type: ignore[arg-type] # it names no tensor

    @torch.no_grad()
    def denoise(
        self,
        images: PIL.Image.Image | Sequence[PIL.Image.Image] | torch.Tensor,
        timestep: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> LDAEDenoisingOutput | tuple[Images, Images]:
        """
        Add noise to images and take it away by one prediction, as in training.

        Args:
            images (`PIL.Image.Image`, a sequence of them, or `torch.Tensor` of shape `(B, C, H, W)`): Pictures, which are
                resized and cropped as in training, or pixels in [0, 1] at the model's `image_size`.
            timestep (`int`): t, how much noise, from 0 to T - 1; of EDM the number of one of its T noise levels.
            generator (`torch.Generator` or a list of one for each image, *optional*): Of the noise.
            noise (`torch.Tensor` of shape `(B, C, H, W)`, *optional*): The standard normal noise itself.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`, as of the call.
            return_dict (`bool`, defaults to `True`): Whether to return an [`LDAEDenoisingOutput`] or a tuple.

        Returns:
            [`LDAEDenoisingOutput`] with `images` and `noisy_images`, or a tuple of these.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        c = self.model.config
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r} is unknown; choose {', '.join(OUTPUT_TYPES)}.")
        if not 0 <= timestep < c.num_train_timesteps:
            raise ValueError(f"timestep={timestep} is not possible; give 0 to {c.num_train_timesteps - 1}.")
        self._load_onto_device()
        x0 = to_pixels(images, c.image_size, c.num_channels).to(self._execution_device)
        eps = self._normal("noise", len(x0), noise, generator)  # (B, C, H, W)
        t = torch.full((1,), timestep, device=x0.device)
        times = self.noise_process.times_at(t)
        noisy = self.noise_process.add_noise(x0, eps, times)
        prediction = self.noise_process.predict(self.model.denoise, noisy, times).float()
        denoised = self.noise_process.reconstruct(prediction, noisy, times)
        shown = (from_pixels(denoised, output_type), from_pixels(noisy, output_type))
        self.maybe_free_model_hooks()
        return LDAEDenoisingOutput(*shown) if return_dict else shown

    @property
    def noise_process(self) -> NoiseProcess:
        """The model's noise process."""
        return self.model.ddae.corruption

    def _along_levels(self, noise: torch.Tensor, sampler: str, eta: float, generator: Any) -> torch.Tensor:
        """By D(x; sigma), from standard normal noise to images, both `(B, C, H, W)`."""
        levels = self.noise_process.sampling_levels(self.num_timesteps).tolist()
        x = noise * levels[0]
        if sampler == "heun":
            return heun_sample(self._denoise, x, levels, self.progress_bar)

        def draw_noise() -> torch.Tensor:
            return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)

        return euler_sample(self._denoise, x, levels, eta, draw_noise, self.progress_bar)

    def _denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """D(x; sigma), kept in the range that the scheduler keeps its own estimates of the clean image in."""
        denoised, c = self.model.denoise_at(x, sigma), self.scheduler.config
        return denoised.clamp(-c.clip_sample_range, c.clip_sample_range) if c.get("clip_sample") else denoised

    def _chain(self, xt: torch.Tensor, eta: float, generator: Any) -> torch.Tensor:
        """By the scheduler, from standard normal noise to images, both `(B, C, H, W)`."""
        self.scheduler.set_timesteps(self.num_timesteps, device=self._execution_device)
        options = self._step_options(eta, generator)
        xt = xt * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(xt, t)
            prediction = self.model.denoise(scaled, t.reshape(1)).float()
            xt = self.scheduler.step(prediction, t, xt, **options).prev_sample
        return xt

    @property
    def most_steps(self) -> int:
        """Of a DDPM's chain its T; EDM's levels may be as many as are asked for."""
        return super().most_steps if self.noise_process.samples_by_scheduler else 2**31

    def check_scheduler(self) -> None:
        """
        Raises:
            ValueError: where the scheduler has another schedule, or another word for what is predicted, than the model.
        """
        if not self.noise_process.samples_by_scheduler:
            ours, given = build_scheduler(self.model.config).config, self.scheduler.config
            names = ("sigma_min", "sigma_max", "sigma_data", "rho")
            if wrong_names := [name for name in names if given.get(name) != ours[name]]:
                name = wrong_names[0]
                raise ValueError(
                    f"scheduler={type(self.scheduler).__name__} does not fit: its {name} is {given.get(name)}, the model's "
                    f"{ours[name]}. Make it by build_scheduler(model.config)."
                )
            return
        scheduler, gammas = self.scheduler, self.model.ddae.corruption.gammas.cpu()
        gamma2 = getattr(scheduler, "alphas_cumprod", None)
        if gamma2 is None or gamma2.shape != gammas.shape or not torch.allclose(gamma2, gammas**2, atol=1e-5):
            wrong = "its schedule is not the model's"
        elif scheduler.config.prediction_type != "epsilon":
            wrong = f"its prediction_type={scheduler.config.prediction_type!r} must be 'epsilon'"
        else:
            return
        raise ValueError(
            f"scheduler={type(scheduler).__name__} does not fit: {wrong}. Make it from the model's own, "
            f"{type(scheduler).__name__}.from_config(build_scheduler(model.config).config)."
        )

    def _step_options(self, eta: float, generator: Any) -> dict[str, Any]:
        """Those of `scheduler.step`; not every scheduler of diffusers takes both."""
        known = inspect.signature(self.scheduler.step).parameters
        if eta and "eta" not in known:
            raise ValueError(f"eta={eta} is not possible with a {type(self.scheduler).__name__}; leave it out.")
        # Noise that fits the clean image which was kept in range, as in DDPM's posterior; diffusers' default has the two
        # disagree, and samples that get worse with more steps.
        options = {"eta": eta, "generator": generator, "use_clipped_model_output": True}
        return {name: value for name, value in options.items() if name in known}

    def _load_onto_device(self) -> None:
        """Where `enable_model_cpu_offload` keeps the model away: its hook waits for a forward, which is not called."""
        hook = getattr(self.model, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.model)

    def _normal(self, name: str, batch_size: int | None, given: torch.Tensor | None, generator: Any) -> torch.Tensor:
        """Standard normal noise `(B, C, H, W)` in float32: the given one, or drawn."""
        counts = {len(given)} if given is not None else set()
        counts |= {len(generator)} if isinstance(generator, list) else set()
        counts |= {batch_size} if batch_size is not None else set()
        if len(counts) > 1 or not all(counts):
            raise ValueError(f"the numbers of images disagree or are 0 ({sorted(counts)}); give as many of each.")
        c = self.model.config
        shape = (next(iter(counts), 1), c.num_channels, c.image_size, c.image_size)
        if given is None:
            return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        if given.shape != shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)}; it must be (B, C, H, W) = {shape}.")
        return given.to(self._execution_device, torch.float32)
