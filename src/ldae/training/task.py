"""The interface of a task: a module, its images and its loss, which the loop in loop.py trains."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ldae.data import Batch, ImageLoader, ImageSource, open_images, prepare_images
from ldae.data.rows import read_labels
from ldae.training.checkpoint import Checkpoint
from ldae.training.machine import return_freed_memory
from ldae.training.progress import describe_count
from ldae.training.recipe import Recipe
from ldae.training.run_folder import RunFolder
from ldae.training.sharding import blocks_of, is_sharded


class Task:
    """A module to train, with its images and its loss. Subclasses build it, compute the loss and write the result.

    Args:
        recipe ([`Recipe`]): Data, seed and budget.

    Attributes:
        activity (`str`): Title of the progress bar.
        product (`str`): Content of the finished folder, for the last line that a run prints.
        batch_option (`str`): Name of the option that gives the total batch size, for errors.
        remedy (`str`): What to change if the loss is not finite.
        config: Configuration of the recipe's model, with `image_size` and `num_channels`.
        num_classes (`int`, *optional*): Number of classes, if the loss uses labels.
        source ([`~ldae.data.ImageSource`]): The training images, once [`~Task.setup`] was called.
        examples ([`~ldae.data.ImageSource`]): Source that the loader reads: the images, or latents made from them.
        module (`nn.Module`): The module to train.
        network (`nn.Module`): The module as wrapped by Accelerate; the loss must call this one.
        parts (`dict[str, torch.Tensor]`): Terms of the last loss by name, for the log.
        rehearsing (`bool`): True in a rehearsal, which fits no tokenizer and writes no file.
    """

    activity = "training"
    product = "the model"
    batch_option = "total_batch_size"
    remedy = "Lower base_learning_rate, lengthen warmup_images, or set mixed_precision=no"
    rehearsing = False
    module: Any
    network: Any

    def __init__(self, recipe: Recipe):
        self.recipe, self.options = recipe, recipe.training
        self.config = recipe.model_config()
        side, size = recipe.data.decode_size, self.config.image_size
        if side is not None and side < size and not recipe.data.random_resized_crop:
            raise ValueError(
                f"data.decode_size={side} is smaller than image_size={size}, and only random_resized_crop enlarges; "
                "raise it, or leave it out."
            )
        self.num_classes: int | None = None
        self.parts: dict[str, torch.Tensor] = {}

    def setup(self, accelerator: Accelerator, checkpoint: Checkpoint | None) -> None:
        """Open the images and build the module. The loop calls this in every process, before anything else.

        Args:
            accelerator (`Accelerator`): Gives the device and the processes.
            checkpoint ([`Checkpoint`], *optional*): Checkpoint that the run resumes from.
        """
        self.accelerator = accelerator
        with accelerator.main_process_first():  # images are downloaded and prepared once
            self.source = self.examples = self.open_source()
        torch.manual_seed(self.options.seed)
        self.module = self.build(checkpoint)

    def open_source(self) -> ImageSource:
        """Open the training images."""
        return self.checked(open_images(self.recipe.data, self.recipe.data.split))

    def checked(self, source: ImageSource) -> ImageSource:
        """Return training images whose labels the loss can use; those of a stream are checked batch by batch.

        Raises:
            ValueError: If an image has no label, or one beyond the classes.
        """
        if self.num_classes is not None and source.label_column is None:
            raise ValueError(
                f"{source.description} has no label column, and this training uses labels; name it with label_column."
            )
        if self.num_classes is not None and not source.streaming:
            check_labels(torch.tensor(read_labels(source)), self.num_classes, source.description)
        return source

    def build(self, checkpoint: Checkpoint | None) -> nn.Module:
        """Build the module on the CPU, perhaps from parts of a checkpoint, such as a fitted tokenizer.

        It may also replace `self.examples`. The loop loads the checkpoint's weights afterwards.
        """
        raise NotImplementedError

    def loss(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Compute the loss of a micro-batch through `self.network`.

        Args:
            batch ([`~ldae.data.Batch`]): The micro-batch, on the CPU.
            positions (`torch.LongTensor` of shape `(b,)`): Position of each example in the run, on the device.

        Returns:
            `torch.Tensor` of shape `()`.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's parameter groups; the learning rate of a group is `lr_scale` times the run's."""
        return [{"params": list(trained_parameters(self.module).values()), "lr_scale": 1.0}]

    def export(self, folder: RunFolder, weights: dict[str, torch.Tensor]) -> None:
        """Write the module for others to load. The main process calls this at each checkpoint before the end.

        Args:
            folder ([`RunFolder`]): The run's folder.
            weights (`dict[str, torch.Tensor]`): Weights and buffers by name, averaged where the run averages them.
        """

    def finish(self, folder: RunFolder, weights: dict[str, torch.Tensor]) -> None:
        """Write the result, with arguments as of [`~Task.export`].

        Every process calls this after the last step, and again after a kill in the meantime.
        """
        if self.accelerator.is_main_process:
            self.export(folder, weights)

    def describe(self) -> str:
        """Describe the module, for the first lines that a run prints."""
        return f"Model: {sum(p.numel() for p in self.module.parameters()) / 1e6:.1f} M weights"

    # -- parts that losses and modules share --------------------------------------------------------------------------

    def pixels(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Return the images of a batch `(b, C, H, W)` on the device, cropped and flipped as the recipe says."""
        data = self.recipe.data
        return prepare_images(
            batch.images.to(positions.device, non_blocking=True),
            positions,
            self.options.seed,
            image_size=self.config.image_size,
            random_resized_crop=data.random_resized_crop and not data.crops_whole_images,
            crop_scale=data.crop_scale,
            horizontal_flip=data.horizontal_flip,
        )

    def labels(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Return the labels of a batch `(b,)` on the device.

        Raises:
            ValueError: If an image of a stream has none, or one beyond the classes; see [`~Task.checked`] for others.
        """
        assert batch.labels is not None and self.num_classes is not None
        if self.source.streaming:
            check_labels(batch.labels, self.num_classes, self.source.description)
        return batch.labels.to(positions.device, non_blocking=True)

    def optimized(self, model: Any) -> Any:
        """Switch on activation checkpointing and compilation where the recipe asks for them."""
        if self.options.activation_checkpointing:  # transformers 5.17 knows the older name only
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
            return_freed_memory()
        if self.options.compile:  # sharded weights are gathered between the blocks, which no graph can span
            for module in blocks_of(model) if is_sharded(self.accelerator) else [model]:
                module.compile(fullgraph=True)
        return model


def open_loader(
    recipe: Recipe,
    source: ImageSource,
    micro_batch_size: int,
    total_batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    start: dict[str, Any] | None = None,
) -> ImageLoader:
    """Open the loader of a recipe's images, or of its latents, in the order that the recipe's seed gives."""
    config = recipe.model_config()
    return ImageLoader(
        source,
        recipe.data,
        image_size=config.image_size,
        num_channels=config.num_channels,
        micro_batch_size=micro_batch_size,
        total_batch_size=total_batch_size,
        rank=rank,
        world_size=world_size,
        seed=recipe.training.seed,
        start=start,
    )


def check_labels(labels: torch.Tensor, num_classes: int, where: str) -> None:
    """Raise a `ValueError` if a label from `where` is missing, which is -1, or beyond the classes."""
    if missing := int((labels < 0).sum()):
        raise ValueError(
            f"{where} has {describe_count(missing, 'image')} without a label; train on data in which every image has "
            "one."
        )
    if (largest := int(labels.max())) >= num_classes:
        raise ValueError(
            f"{where} has the label {largest}, and the model has classes 0 to {num_classes - 1} only; give it a "
            "class for each label (of a denoiser num_class_embeds)."
        )


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def batch_statistics(module: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the running statistics of BatchNorms, which a forward pass changes, with a copy of each."""
    norms = [norm for norm in module.modules() if getattr(norm, "track_running_stats", False)]
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
