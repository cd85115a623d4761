"""The part that both pipelines share: reading and writing a run's folder, samplers, arguments, and denoising."""

import inspect
import os
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import PIL.Image
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME
from diffusers.utils.torch_utils import randn_tensor
from transformers.utils import cached_file

from ldae.checkpoints import refuse_non_finite
from ldae.pipelines.images import (
    OUTPUT_TYPES,
    Generators,
    Images,
    Labels,
    LDAEDenoisingOutput,
    from_pixels,
    require_known,
    to_pixels,
)
from ldae.schedulers.scheduling_ldae import LDAEScheduler, build_scheduler


SCHEDULER_FOLDER = "scheduler"
HEUN = "EDM (Heun)"  # the sampler's name in results
DEFAULT_STEPS = {"ddim": 50, "ancestral": 1000, "heun": 18}  # as in the DDAE paper, but for its 100 steps of DDIM
# The arguments of from_pretrained that say where a file comes from.
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")


class RunFolderPipeline(DiffusionPipeline):
    """A pipeline of a model and its scheduler, stored as a run's folder or a Hub repository of the same layout.

    `config.json` and `model.safetensors` are at the root, the scheduler is in `scheduler/`, and there is no
    `model_index.json`.
    """

    model_class: Any
    model_cpu_offload_seq = "model"  # type: ignore[assignment] # diffusers leaves it None for want of a type
    samplers: tuple[str, ...] = ("ddim", "ancestral")  # the default comes first
    model: Any
    scheduler: Any  # of the class that build_scheduler returns, or one of diffusers' with the same schedule

    def __init__(self, model: Any, scheduler: Any):
        super().__init__()
        self.register_modules(model=model, scheduler=scheduler)
        self.check_scheduler()

    # -- the folder --

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        model: Any = None,
        scheduler: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Load a run's folder or a Hub repository.

        Args:
            pretrained_model_name_or_path (`str` or path): The folder, or the Hub id.
            model (*optional*): Used in place of the folder's.
            scheduler (*optional*): Used in place of the folder's.
            **kwargs: Arguments of transformers' `from_pretrained`: `dtype` (or diffusers' dict with one for each
                component), `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Returns:
            The pipeline. A folder without `scheduler/` gets the scheduler that its `config.json` describes.

        Raises:
            OSError: If the folder or repository does not exist or has no model.
            ValueError: If it holds another model, only an encoder, or a scheduler that disagrees with `config.json`.
        """
        source = pretrained_model_name_or_path
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if isinstance(dtype := kwargs.get("dtype"), dict):
            kwargs["dtype"] = dtype.get("model", dtype.get("default"))
        if model is None:
            known = cls.model_class.config_class
            model_type = known.get_config_dict(source, **hub)[0].get("model_type")
            if model_type != known.model_type:
                raise ValueError(
                    f"{str(source)!r} holds a model of type {model_type!r}, but {cls.__name__} needs one of type "
                    f"{known.model_type!r}."
                )
            loaded: Any = cls.model_class.from_pretrained(source, output_loading_info=True, **kwargs)
            model, report = loaded
            refuse_non_finite(model, str(source))
            missing = sorted(report["missing_keys"])
            if missing:
                raise ValueError(
                    f"{str(source)!r} holds an encoder, not a whole denoiser: {len(missing)} of its tensors are "
                    f"missing, such as {missing[0]}. Give the folder of a pre-training run."
                )
        assert model is not None
        if scheduler is None:
            scheduler = build_scheduler(model.config)
            path = cached_file(
                source,
                SCHEDULER_CONFIG_NAME,
                subfolder=SCHEDULER_FOLDER,
                _raise_exceptions_for_missing_entries=False,
                **hub,
            )
            if path is not None:
                scheduler = type(scheduler).from_pretrained(Path(path).parent)
        return cls(model=model, scheduler=scheduler)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write the files that `from_pretrained` and transformers' Auto classes read.

        They are the model with its code, the image processor, and the scheduler that the model's configuration
        describes.

        Args:
            save_directory (`str` or path): Created if missing.
            push_to_hub (`bool`, defaults to `False`): Push the folder, too.
            **kwargs: Arguments of transformers' `save_pretrained`, such as `max_shard_size`; when pushing, instead
                `repo_id` (the folder's name by default) and the other arguments of `push_to_hub`.
        """
        from ldae.data.image_processor import save_image_processor
        from ldae.hub.push import push_to_hub as push
        from ldae.hub.remote_code import save_with_code

        folder = Path(save_directory)
        self.model.save_pretrained(folder, **({} if push_to_hub else kwargs))
        save_with_code(folder)
        save_image_processor(folder, self.model.config)
        build_scheduler(self.model.config).save_pretrained(folder / SCHEDULER_FOLDER)
        if push_to_hub:
            push(folder, kwargs.pop("repo_id", folder.resolve().name), **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> None:  # type: ignore[override]
        """Push the pipeline to the Hub, with a model card.

        Args:
            repo_id (`str`): `"namespace/name"`, created if it does not exist.
            **kwargs: `private`, `revision`, `tag`, `token`, `commit_message`.

        Raises:
            ValueError: If the tokenizer was never fitted.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, **kwargs)

    # -- samplers and the scheduler --

    def resolve_sampler(self, sampler: str | None, eta: float) -> tuple[str, float]:
        """Return the sampler, by default the first of `samplers`, and its eta, which is 1 for "ancestral".

        Raises:
            ValueError: If this pipeline does not have the sampler, or if eta contradicts it.
        """
        if sampler is not None and sampler not in self.samplers:
            raise ValueError(f"sampler={sampler!r} is unknown; this model has {', '.join(self.samplers)}.")
        chosen = sampler or self.samplers[0]
        implied = 1.0 if chosen == "ancestral" else 0.0
        if eta not in (0, implied) and (sampler is not None or chosen != "ddim"):
            raise ValueError(
                f"eta={eta} contradicts sampler={chosen!r}, whose eta is {implied:g}; leave out one of them."
            )
        return chosen, implied if sampler is not None else float(eta)

    def describe_sampler(self, sampler: str | None, eta: float) -> str:
        """Return the sampler's name in results: "DDIM", "DDIM with noise", "ancestral" or "EDM (Heun)"."""
        chosen, eta = self.resolve_sampler(sampler, eta)
        return HEUN if chosen == "heun" else {0.0: "DDIM", 1.0: "ancestral"}.get(eta, "DDIM with noise")

    def steps_by_default(self, sampler: str | None) -> int:
        """Return the default number of steps: 50 for DDIM, 1000 (at most T) for "ancestral", 18 for Heun's method."""
        chosen, _ = self.resolve_sampler(sampler, 0.0)
        return min(DEFAULT_STEPS[chosen], self.most_steps)

    @property
    def most_steps(self) -> int:
        """The largest number of steps: the scheduler's T."""
        return self.model.config.num_train_timesteps

    def check_scheduler(self) -> None:
        """Check that the scheduler has the model's noise schedule and prediction type.

        Raises:
            ValueError: If either differs.
        """
        scheduler = self.scheduler
        if isinstance(scheduler, LDAEScheduler):
            scheduler.verify_matches(self.model.config)
            return
        ours = build_scheduler(self.model.config)
        right = ours.gammas**2 if isinstance(ours, LDAEScheduler) else ours.alphas_cumprod
        gamma2 = getattr(scheduler, "alphas_cumprod", None)
        if gamma2 is None or gamma2.shape != right.shape or not torch.allclose(gamma2, right, atol=1e-5):
            wrong = "its schedule is not the model's"
        elif scheduler.config.prediction_type != ours.config.prediction_type:
            wrong = f"its prediction_type={scheduler.config.prediction_type!r} must be {ours.config.prediction_type!r}"
        else:
            return
        raise ValueError(
            f"scheduler={type(scheduler).__name__} does not fit: {wrong}. Make it with {type(scheduler).__name__}."
            "from_config(build_scheduler(model.config).config); an l-DAE's 'linear_sigma' and 'constant' schedules "
            "need an LDAEScheduler."
        )

    def _step_options(self, **options: Any) -> dict[str, Any]:
        """Drop the options that the scheduler's `step` does not take."""
        known = inspect.signature(self.scheduler.step).parameters
        if options.get("eta") and "eta" not in known:
            raise ValueError(
                f"eta={options['eta']} cannot be used with a {type(self.scheduler).__name__}, which has no eta; leave "
                "it out."
            )
        return {name: value for name, value in options.items() if name in known}

    # -- a call --

    @abstractmethod
    def _denoise_once(
        self, pixels: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Corrupt pixels `(B, C, H, W)` at time step t `(1,)`; return denoised and noisy images `(B, C, H, W)`."""

    @abstractmethod
    def noise_scales(self, timestep: int) -> tuple[float, float]:
        """Return the factors of the clean images, or their latents, and of the noise that [`denoise`] adds at t."""

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
        """Add noise to images and remove it in one prediction, as in training (Fig. 8).

        Args:
            images (`PIL.Image.Image`, a sequence of them, or `torch.Tensor` of shape `(B, C, H, W)`): Pictures, which
                are resized and cropped as in training, or pixels in [0, 1] at the model's `image_size`.
            timestep (`int`): t, how much noise, from 0 to T - 1; for EDM the number of one of its T noise levels.
            generator (`torch.Generator` or a list of one for each image, *optional*): Generator of the noise.
            noise (`torch.Tensor` of shape `(B, N, d)`, for a DDAE `(B, C, H, W)`, *optional*): The standard normal
                noise itself.
            class_labels (`int` or `Sequence[int]`, *optional*): As in the call; only for a class-conditional model.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`, as in the call.
            return_dict (`bool`, defaults to `True`): Return an [`LDAEDenoisingOutput`], or else a tuple.

        Returns:
            [`LDAEDenoisingOutput`] with `images` and `noisy_images`, or a tuple of these.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        c = self.model.config
        require_known("output_type", [output_type], OUTPUT_TYPES)
        if not 0 <= timestep < c.num_train_timesteps:
            raise ValueError(f"timestep={timestep} does not exist; choose one of 0 to {c.num_train_timesteps - 1}.")
        self._load_onto_device()
        pixels = to_pixels(images, c.image_size, c.num_channels).to(self._execution_device)
        self._count_images(class_labels, generator, images=pixels, noise=noise)
        labels = self._prepare_labels(class_labels, len(pixels), guidance_scale=1.0)
        eps = self._normal("noise", noise, len(pixels), generator)  # (B, N, d) or (B, C, H, W)
        t = torch.full((1,), timestep, device=pixels.device)
        denoised, noisy = self._denoise_once(pixels, eps, t, labels)
        shown = (from_pixels(denoised, output_type), from_pixels(noisy, output_type))
        self.maybe_free_model_hooks()
        return LDAEDenoisingOutput(*shown) if return_dict else shown

    def _count_images(
        self,
        class_labels: Labels,
        generator: Generators,
        batch_size: int | None = None,
        **tensors: torch.Tensor | None,
    ) -> int:
        """Return the number of images, on which all arguments must agree."""
        counts = {} if batch_size is None else {"batch_size": batch_size}
        if class_labels is not None and (labels := torch.as_tensor(class_labels)).ndim:
            counts["class_labels"] = len(labels)
        counts |= {name: len(values) for name, values in tensors.items() if values is not None}
        if isinstance(generator, list):
            counts["generator"] = len(generator)
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{name}: {count}" for name, count in counts.items())
            raise ValueError(f"the numbers of images disagree ({found}); give as many of each.")
        count = next(iter(counts.values()), 1)
        if count < 1:
            raise ValueError(f"batch_size={count} is too small; give 1 or more.")
        return count

    def _prepare_labels(self, class_labels: Labels, count: int, guidance_scale: float) -> torch.Tensor | None:
        """Return classes `(B,)`, or `None` for the null class."""
        classes = self.model.config.num_class_embeds
        if classes is None:
            if class_labels is None and guidance_scale == 1:
                return None
            shown = "class_labels" if isinstance(class_labels, torch.Tensor) else f"class_labels={class_labels}"
            given = f"guidance_scale={guidance_scale}" if class_labels is None else shown
            raise ValueError(
                f"{given} needs a class-conditional model, but this one is trained without labels; leave it out."
            )
        unguided = self.model.config.class_dropout_prob == 0
        if class_labels is None or (unguided and guidance_scale != 1):
            if unguided:
                raise ValueError(
                    "class_dropout_prob=0: this model never saw the null class, so it needs class_labels, and can "
                    "only generate with guidance_scale=1."
                )
            if guidance_scale != 1:
                raise ValueError(
                    f"guidance_scale={guidance_scale} needs class_labels: guidance leads from the null class to them."
                )
            return None
        labels = torch.as_tensor(class_labels, device=self._execution_device).long().reshape(-1)
        if labels.min() < 0 or labels.max() > classes:
            raise ValueError(
                f"class_labels={sorted(set(labels.tolist()))} are not all classes; the classes are 0 to "
                f"{classes - 1}, and {classes} is the null class."
            )
        return labels.expand(count)

    def _normal(self, name: str, given: torch.Tensor | None, count: int, generator: Generators) -> torch.Tensor:
        """Return standard normal noise in float32, of the shape that the model denoises: the given one, or drawn."""
        shape, device = (count, *self.model.noise_shape), self._execution_device
        if given is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if given.shape != shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)}; it must be {shape}.")
        return given.to(device, torch.float32)

    def _load_onto_device(self) -> None:
        """Move the model where `enable_model_cpu_offload` does: its hook waits for a forward, which is not called."""
        hook = getattr(self.model, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.model)
