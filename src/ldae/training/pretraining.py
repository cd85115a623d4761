"""Pre-training a denoiser: from a recipe to a finished run folder."""

from typing import Any

import torch
from transformers import AutoModelForPreTraining, PreTrainedModel

from ldae.data import Batch, augment_geometry, prepare_latents
from ldae.evaluation.grid_search import name_layer, write_choice
from ldae.evaluation.online import OnlineProbe
from ldae.hub.model_card import write_model_card
from ldae.hub.push import HubUploader
from ldae.models.modeling_ldae import LDAEForPreTraining
from ldae.models.pretraining_ddae import DDAEForPreTraining
from ldae.reports.ddae_pictures import draw_ddae_pictures
from ldae.reports.run_pictures import draw_run_pictures
from ldae.results import add_result
from ldae.training.checkpoint import Checkpoint
from ldae.training.latent_cache import latent_source
from ldae.training.loop import TrainingRun
from ldae.training.recipe import Recipe
from ldae.training.run_folder import RunFolder
from ldae.training.tokenizer_training import obtain_tokenizer


_TOKENIZER = "ldae.tokenizer."  # of the tokenizer's tensors in a checkpoint


class PretrainingRun(TrainingRun):
    """
    Pre-training of an [`LDAEForPreTraining`], its latent tokenizer fitted or trained first where the recipe names none.

    Args:
        recipe ([`Recipe`]): With `training.output_dir`.
    """

    activity = "pre-training"
    model: Any

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        t = recipe.training
        self.probe = OnlineProbe.open(recipe.data, self.model.config, t) if t.probe_every_images != 0 else None
        self.selecting = self.source.label_column is not None if t.select_features is None else t.select_features
        if self.selecting and self.source.label_column is None:
            raise ValueError(
                "select_features=true needs labels, and the data has none; name its label_column, or set select_features=false "
                "and search by a criterion afterwards (ldae grid_search --criterion rankme)."
            )
        self.uploader = None
        if t.push_to_hub and self.is_main:
            self.uploader = HubUploader(self.folder.path, t.push_to_hub, private=t.hub_private)

    def build(self, checkpoint: Checkpoint | None) -> PreTrainedModel:
        model = LDAEForPreTraining(self.recipe.model_config())
        if checkpoint is None:
            fitted = obtain_tokenizer(self.recipe, self.source, self.accelerator).state_dict()
        else:
            names = [name for name in checkpoint.model if name.startswith(_TOKENIZER)]
            fitted = {name.removeprefix(_TOKENIZER): checkpoint.model[name] for name in names}
        model.ldae.tokenizer.load_state_dict(fitted)
        self.examples = latent_source(self.recipe, model.ldae.tokenizer, self.source, self.accelerator)
        return self._prepared(model)

    def loss(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        timesteps, noise = self.model.draw_corruption(positions, self.options.seed)
        labels = self._class_labels(batch, positions)
        if batch.latents is None:
            return self.network(self.pixels(batch, positions), timesteps, noise, labels).loss
        return self.network(None, timesteps, noise, labels, self._latents(batch, positions)).loss

    @property
    def encoder(self) -> PreTrainedModel:
        """Whose features are probed."""
        return self.model

    def measure(self, at_end: bool) -> None:
        t = self.options
        if self.probe and (self.due(t.probe_every_images or max(1, t.images // 10)) or at_end):
            self.log({"event": "probe", **self.probe(self.encoder)})

    def export(self, weights: dict[str, torch.Tensor]) -> None:
        self.folder.export(self.model, weights)
        if self.uploader and self.images_seen < self.end:
            self.uploader.push(f"{self.images_seen:,} images seen")

    def conclude(self, weights: dict[str, torch.Tensor]) -> None:
        self.export(weights)
        if self.selecting:
            self.select_features()
        self.draw_pictures()
        write_model_card(self.folder.path, repo_id=self.options.push_to_hub)
        if self.uploader:
            self.uploader.finish("Trained")
        self.say(f"Finished: {self.folder.path} holds the model, its card and its pictures.")

    def select_features(self) -> None:
        """Search the exported model for its best block and time step, and make them the defaults in its config.json."""
        probe = self.probe or OnlineProbe.open(self.recipe.data, self.model.config, self.options)
        if probe is None:  # a label column without a label, which has been said
            return
        model = AutoModelForPreTraining.from_pretrained(self.folder.path).to(self.device)
        search = probe.search(getattr(model, "ddae", model))
        layer, timestep = search.columns[search.chosen]
        accuracies = search.probes.held_out.tolist()
        for index in dict.fromkeys((search.chosen, search.paper)):
            add_result(
                self.folder.path,
                {
                    "metric": "held_out_accuracy",
                    "value": accuracies[index],
                    "dataset": self.recipe.data.dataset,
                    "split": self.recipe.data.split,
                    "protocol": search.describe(index),
                    "seed": 0,
                    "checkpoint": ".",
                    "chosen": index == search.chosen,
                },
            )
        write_choice(self.folder.path, layer, timestep)
        paper = search.columns[search.paper]
        self.say(
            f"Features are read after {name_layer(layer)} at t = {timestep}: {accuracies[search.chosen]:.1%} on held-out "
            f"training images, {accuracies[search.paper]:.1%} after {name_layer(paper[0])} at t = {paper[1]}."
        )

    def draw_pictures(self) -> None:
        """Of the model that was put into the folder."""
        draw_run_pictures(self.folder.path, self.source)

    def describe(self) -> str:
        c, weights = self.model.config, sum(p.numel() for p in self.model.parameters())
        return (
            f"Model: {weights / 1e6:.1f} M weights, {c.num_hidden_layers} + {c.decoder_num_hidden_layers} blocks of width "
            f"{c.hidden_size}, {c.num_patches} patches, d = {c.latent_dim} of {c.patch_dim}, {c.latent_tokenizer}"
        )

    def _prepared(self, model: Any) -> Any:
        """As the recipe wants it computed."""
        if self.options.activation_checkpointing:  # transformers 5.17 knows the older name only
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        if self.options.compile:
            model.compile(fullgraph=True)
        return model

    def _latents(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """The batch's cached latents `(b, N, d)`, flipped where its pixels would be."""
        stored: Any = batch.latents
        flip = self.recipe.data.horizontal_flip
        stored = stored.to(self.device, non_blocking=True)
        return prepare_latents(stored, positions, self.options.seed, horizontal_flip=flip)

    def _class_labels(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor | None:
        if self.model.config.num_class_embeds is None:
            return None
        if batch.labels is None:
            raise ValueError("num_class_embeds is set, but the data has no labels; name the label_column.")
        return self.model.drop_labels(batch.labels.to(self.device), positions, self.options.seed)


class DDAEPretrainingRun(PretrainingRun):
    """
    Pre-training of a [`DDAEForPreTraining`], on pixels and without labels.

    Args:
        recipe ([`Recipe`]): With `training.output_dir`, of `model_type: ddae`.
    """

    model: DDAEForPreTraining

    def build(self, checkpoint: Checkpoint | None) -> PreTrainedModel:
        return self._prepared(DDAEForPreTraining(self.recipe.model_config()))

    @property
    def encoder(self) -> PreTrainedModel:
        return self.model.ddae

    def loss(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        timesteps, noise = self.model.draw_corruption(positions, self.options.seed)
        # Dropout draws from torch's own generators: of a batch's place in the run, a resumed run draws the same.
        torch.manual_seed(self.options.seed * 2**32 + int(batch.positions[0]))
        pixels, labels = self.pixels(batch, positions), None
        if probability := self.recipe.data.geometric_augmentation:
            pixels, labels = augment_geometry(pixels, positions, self.options.seed, probability=probability)
        return self.network(pixels, timesteps, noise, augmentation_labels=labels).loss

    def draw_pictures(self) -> None:
        draw_ddae_pictures(self.folder.path, self.source)

    def describe(self) -> str:
        c, weights = self.model.config, sum(p.numel() for p in self.model.parameters())
        return (
            f"Model: {weights / 1e6:.1f} M weights, {c.denoiser_type} on {c.num_channels} x {c.image_size} x "
            f"{c.image_size}; features at {c.feature_layer} and t = {c.feature_timestep}"
        )


RUNS: dict[str, type[PretrainingRun]] = {"ldae": PretrainingRun, "ddae": DDAEPretrainingRun}


def pretrain(recipe: Recipe) -> RunFolder:
    """
    Run a recipe to its end: the same call on the same folder resumes, and on a finished run changes nothing.

    Args:
        recipe ([`Recipe`]): With `training.output_dir`.

    Returns:
        [`RunFolder`], finished.

    Raises:
        ValueError, RunError: as of [`PretrainingRun`].
    """
    if recipe.training.output_dir is not None:
        folder = RunFolder(recipe.training.output_dir)
        folder.check_recipe(recipe)
        if folder.finished(recipe.training.images):
            print(f"{folder.path} is finished ({recipe.training.images:,} images); nothing to do.")
            return folder
    run = RUNS[recipe.model_type](recipe)
    run.train()
    return run.folder
