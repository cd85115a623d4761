"""Pipelines of checkpoints and of live models, by the model's type."""

import os
from typing import Any

from transformers import PreTrainedConfig

from ldae.pipelines.pipeline_ddae import DDAEPipeline
from ldae.pipelines.pipeline_ldae import LDAEPipeline
from ldae.pipelines.run_folder import HUB_ARGUMENTS, RunFolderPipeline
from ldae.schedulers.scheduling_ldae import build_scheduler


PIPELINES: dict[str | None, type[RunFolderPipeline]] = {"ddae": DDAEPipeline, "ldae": LDAEPipeline}


def open_pipeline(source: str | os.PathLike[str], **kwargs: Any) -> RunFolderPipeline:
    """Load the pipeline of a run's folder or a Hub repository, by the `model_type` in its `config.json`.

    Args:
        source (`str` or path): The folder, or the Hub id.
        **kwargs: Arguments of [`~RunFolderPipeline.from_pretrained`], which also says what is raised.
    """
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    model_type = PreTrainedConfig.get_config_dict(source, **hub)[0].get("model_type")
    return PIPELINES.get(model_type, LDAEPipeline).from_pretrained(source, **kwargs)


def build_pipeline(model: Any) -> RunFolderPipeline:
    """Build the pipeline of a live [`DDAEForPreTraining`] or [`LDAEForPreTraining`], with its own scheduler."""
    return PIPELINES[model.config.model_type](model, build_scheduler(model.config))
