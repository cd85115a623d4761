"""ldae: denoising autoencoders for representation learning in the Hugging Face ecosystem."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)
from transformers.pipelines import PIPELINE_REGISTRY

from ldae.models.backbone_ddae import DDAEBackbone
from ldae.models.configuration_ddae import DDAEConfig
from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.image_processing_ldae import (
    LDAEImageClassificationPipeline,
    LDAEImageFeatureExtractionPipeline,
    LDAEImageProcessor,
)
from ldae.models.modeling_ddae import DDAEForImageClassification, DDAEModel
from ldae.models.modeling_ldae import LDAEBackbone, LDAEForImageClassification, LDAEModel
from ldae.models.pretraining_ddae import DDAEForPreTraining
from ldae.models.pretraining_ldae import LDAEForPreTraining, LDAEForPreTrainingOutput
from ldae.models.tokenizer_ldae import PatchAutoencoder, PatchPCA, PatchPixels, patchify, unpatchify


if TYPE_CHECKING:
    from ldae.data.image_processor import save_image_processor
    from ldae.pipelines.pipeline_ddae import DDAEPipeline
    from ldae.pipelines.pipeline_ldae import LDAEPipeline
    from ldae.schedulers.scheduling_ldae import LDAEScheduler
    from ldae.tokenizers.pca import PatchMoments, fit_patch_pca

__version__ = "0.1.0"

# Names whose modules load more than torch and transformers: they come when they are used.
_LAZY = {
    "DDAEPipeline": "ldae.pipelines.pipeline_ddae",
    "LDAEPipeline": "ldae.pipelines.pipeline_ldae",
    "LDAEScheduler": "ldae.schedulers.scheduling_ldae",
    "PatchMoments": "ldae.tokenizers.pca",
    "fit_patch_pca": "ldae.tokenizers.pca",
    "save_image_processor": "ldae.data.image_processor",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ldae' has no attribute {name!r}")


AutoConfig.register("ldae", LDAEConfig, exist_ok=True)
AutoModel.register(LDAEConfig, LDAEModel, exist_ok=True)
AutoModelForPreTraining.register(LDAEConfig, LDAEForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(LDAEConfig, LDAEForImageClassification, exist_ok=True)
AutoBackbone.register(LDAEConfig, LDAEBackbone, exist_ok=True)

AutoConfig.register("ddae", DDAEConfig, exist_ok=True)
AutoModel.register(DDAEConfig, DDAEModel, exist_ok=True)
AutoModelForPreTraining.register(DDAEConfig, DDAEForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(DDAEConfig, DDAEForImageClassification, exist_ok=True)
AutoBackbone.register(DDAEConfig, DDAEBackbone, exist_ok=True)

# One class under both names: the pixels must not depend on whether torchvision is installed.
_backends: dict[str, type] = {"pil": LDAEImageProcessor, "torchvision": LDAEImageProcessor}
for _config_class in (LDAEConfig, DDAEConfig):
    AutoImageProcessor.register(_config_class, image_processor_classes=_backends, exist_ok=True)
# Both behave as transformers' own with any other image processor. They are set here and not by `register_pipeline`,
# which would warn, and would make `save_pretrained` of every model's pipeline ask for remote code.
PIPELINE_REGISTRY.supported_tasks["image-feature-extraction"]["impl"] = LDAEImageFeatureExtractionPipeline
PIPELINE_REGISTRY.supported_tasks["image-classification"]["impl"] = LDAEImageClassificationPipeline

__all__ = [
    "DDAEBackbone",
    "DDAEConfig",
    "DDAEForImageClassification",
    "DDAEForPreTraining",
    "DDAEModel",
    "DDAEPipeline",
    "LDAEBackbone",
    "LDAEConfig",
    "LDAEForImageClassification",
    "LDAEForPreTraining",
    "LDAEForPreTrainingOutput",
    "LDAEImageProcessor",
    "LDAEModel",
    "LDAEPipeline",
    "LDAEScheduler",
    "PatchAutoencoder",
    "PatchMoments",
    "PatchPCA",
    "PatchPixels",
    "fit_patch_pca",
    "patchify",
    "save_image_processor",
    "unpatchify",
]
