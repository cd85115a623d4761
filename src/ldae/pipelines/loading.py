"""A diffusers pipeline whose home is a run's folder."""

import os
import tempfile
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from ldae.models.modeling_ldae import LDAEForPreTraining
from ldae.schedulers.build import build_scheduler
from ldae.schedulers.scheduling_ldae import LDAEScheduler


SCHEDULER_FOLDER = "scheduler"
HEUN = "EDM (Heun)"  # as results name it
DEFAULT_STEPS = {
    "ddim": 50,
    "ancestral": 1000,
    "heun": 18,
}  # of each sampler, as the DDAE paper has it but for DDIM's 100
# Of the arguments of from_pretrained, those that say where a file comes from.
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")


class RunFolderPipeline(DiffusionPipeline):
    """
    A pipeline of a model and its scheduler that is read from a run's folder, or a Hub repository of the same layout, and
    written as one: `config.json` and `model.safetensors` at the root, the scheduler in `scheduler/`. There is no
    `model_index.json`.
    """

    model_class: Any = LDAEForPreTraining
    samplers: tuple[str, ...] = ("ddim", "ancestral")  # the first by default
    model: Any
    scheduler: Any  # of the class that build_scheduler gives, or one of diffusers' that says the same

    def __init__(self, model: Any, scheduler: Any):
        super().__init__()
        self.register_modules(model=model, scheduler=scheduler)
        self.check_scheduler()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        model: Any = None,
        scheduler: Any = None,
        **kwargs: Any,
    ) -> Self:
        """
        Load a run's folder or a Hub repository.

        Args:
            pretrained_model_name_or_path (`str` or path): The folder, or the Hub id.
            model, scheduler (*optional*): Used in place of what the folder holds.
            **kwargs: What transformers' `from_pretrained` takes: `dtype` (or diffusers' dict of one for each component),
                `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Returns:
            The pipeline. A folder without `scheduler/` gets the one that its `config.json` describes.

        Raises:
            OSError: where there is no such folder or repository, or it has no model.
            ValueError: where it holds another model, less than a whole denoiser, or a scheduler that disagrees with
                `config.json`.
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
                    f"{str(source)!r} holds a model of type {model_type!r}; this pipeline is of {known.model_type!r} alone."
                )
            loaded: Any = cls.model_class.from_pretrained(source, output_loading_info=True, **kwargs)
            model, report = loaded
            missing = sorted(report["missing_keys"])
            if missing:
                raise ValueError(
                    f"{str(source)!r} holds an encoder, not a whole denoiser: {len(missing)} of its tensors are missing, "
                    f"such as {missing[0]}. Give the folder of a pre-training run."
                )
        assert model is not None
        if scheduler is None:
            path = cached_file(
                source,
                SCHEDULER_CONFIG_NAME,
                subfolder=SCHEDULER_FOLDER,
                _raise_exceptions_for_missing_entries=False,
                **hub,
            )
            if path is None:
                scheduler = build_scheduler(model.config)
            else:
                scheduler = type(build_scheduler(model.config)).from_pretrained(Path(path).parent)
        return cls(model=model, scheduler=scheduler)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """
        Write what `from_pretrained` and transformers' Auto classes read: the model with its code, the image processor,
        and the scheduler that the model's configuration describes.

        Args:
            save_directory (`str` or path): Made where it is missing.
            push_to_hub (`bool`, defaults to `False`): Whether the folder is pushed, too.
            **kwargs: Of transformers' `save_pretrained`, such as `max_shard_size`; where it is pushed, instead
                `repo_id` (by default the folder's name) and the other arguments of `push_to_hub`.
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
        """
        Push the pipeline to the Hub, with a model card.

        Args:
            repo_id (`str`): `"namespace/name"`, made where it does not exist.
            **kwargs: `private`, `revision`, `tag`, `token`, `commit_message`.

        Raises:
            ValueError: where the tokenizer was never fitted.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, **kwargs)

    def resolve_sampler(self, sampler: str | None, eta: float) -> tuple[str, float]:
        """
        What is meant by the two arguments of a call that say how noise becomes images.

        Args:
            sampler (`str`, *optional*): One of `samplers`; by default the first of them.
            eta (`float`): From 0 to 1, of a chain for which no sampler is named.

        Returns:
            The sampler and its eta: 1 of "ancestral".

        Raises:
            ValueError: for a sampler that this pipeline does not have, or an eta that is not the named one's.
        """
        if sampler is not None and sampler not in self.samplers:
            raise ValueError(f"sampler={sampler!r} is not possible; this model has {', '.join(self.samplers)}.")
        chosen = sampler or self.samplers[0]
        implied = 1.0 if chosen == "ancestral" else 0.0
        if eta not in (0, implied) and (sampler is not None or chosen != "ddim"):
            raise ValueError(
                f"eta={eta} is not possible with sampler={chosen!r}, which has {implied:g}; give one of them."
            )
        return chosen, implied if sampler is not None else float(eta)

    def describe_sampler(self, sampler: str | None, eta: float) -> str:
        """As results name it: "DDIM", "DDIM with noise", "ancestral" or "EDM (Heun)"."""
        chosen, eta = self.resolve_sampler(sampler, eta)
        return HEUN if chosen == "heun" else {0.0: "DDIM", 1.0: "ancestral"}.get(eta, "DDIM with noise")

    def steps_by_default(self, sampler: str | None) -> int:
        """Where nothing else is said: 50 of a chain, T (at most 1000) of one that is called ancestral, 18 of Heun's method."""
        chosen, _ = self.resolve_sampler(sampler, 0.0)
        return min(DEFAULT_STEPS[chosen], self.most_steps)

    @property
    def most_steps(self) -> int:
        """Of a chain: the T time steps that there are."""
        return self.model.config.num_train_timesteps

    def check_scheduler(self) -> None:
        """
        Raises:
            ValueError: where the scheduler has another schedule, or other words for what is predicted, than the model.
        """
        scheduler = self.scheduler
        if isinstance(scheduler, LDAEScheduler):
            scheduler.verify_matches(self.model.config)
            return
        ours = LDAEScheduler.from_ldae_config(self.model.config)
        gamma2, right = getattr(scheduler, "alphas_cumprod", None), ours.gammas**2
        if gamma2 is None or gamma2.shape != right.shape or not torch.allclose(gamma2, right, atol=1e-5):
            wrong = f"its schedule is not the model's {ours.config.noise_schedule!r}"
        elif scheduler.config.prediction_type != ours.config.prediction_type:
            wrong = f"its prediction_type={scheduler.config.prediction_type!r} must be {ours.config.prediction_type!r}"
        else:
            return
        raise ValueError(
            f"scheduler={type(scheduler).__name__} does not fit: {wrong}. Make it from the model's own, "
            f"{type(scheduler).__name__}.from_config(LDAEScheduler.from_ldae_config(model.config).config), which is "
            "possible for 'linear_beta' and 'linear_gamma2'."
        )


def open_pipeline(source: str | os.PathLike[str], **kwargs: Any) -> RunFolderPipeline:
    """
    The pipeline of a run's folder or a Hub repository, by the `model_type` of its `config.json`.

    Args, Raises: as of [`~RunFolderPipeline.from_pretrained`].

    Returns:
        A [`DDAEPipeline`] or an [`LDAEPipeline`].
    """
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    model_type = PreTrainedConfig.get_config_dict(source, **hub)[0].get("model_type")
    return _pipeline_class(model_type).from_pretrained(source, **kwargs)


def pipeline_of(model: Any) -> RunFolderPipeline:
    """The pipeline of a live [`DDAEForPreTraining`] or [`LDAEForPreTraining`], with the scheduler of its configuration."""
    return _pipeline_class(model.config.model_type)(model, build_scheduler(model.config))


def _pipeline_class(model_type: str | None) -> type[RunFolderPipeline]:
    from ldae.pipelines.pipeline_ddae import DDAEPipeline
    from ldae.pipelines.pipeline_ldae import LDAEPipeline

    return DDAEPipeline if model_type == "ddae" else LDAEPipeline
