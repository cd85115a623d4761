"""Ridge and kNN accuracy on a fixed subset while a model trains: its loss does not tell what its features hold."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ldae.data import Batch, DataConfig, ImageSource, iterate_once, open_probe_images
from ldae.models.configuration_ldae import LDAEConfig

from .encoder import as_encoder
from .features import extract_features
from .images import fixed_subset
from .knn import knn_accuracy
from .probing import probe_features
from .protocol import HOLDOUT
from .search import FeatureSearch, search_features


if TYPE_CHECKING:
    from ldae.training.recipe import TrainingConfig

logger = logging.getLogger(__name__)
BATCH_SIZE = 256  # images of a forward
SUBSET_SEED = 0  # the subset and its split are the same in all runs, so that their curves compare


class NoLabelsError(ValueError):
    """There is nothing to probe with: the images have no labels, or too few."""


class OnlineProbe:
    """Ridge and kNN accuracy of a model's default features (clean input, `feature_layer`, `feature_timestep`).

    The images are decoded once, at construction, and kept as uint8. Every process of a job holds the same subset and
    gets the same numbers. Rows without a label are left out.

    Args:
        train_source (`ImageSource`): Where the probes' training images come from.
        eval_source (`ImageSource`): Where the images come from that they are scored on.
        image_size (`int`, in pixels): The model's.
        num_channels (`int`, defaults to 3): The model's.
        num_train (`int`, defaults to 5000): Most training images, drawn at random but always the same.
        num_eval (`int`, defaults to 1000): Most test images.
        dtype (`torch.dtype`, *optional*): Autocast dtype; by default no autocast.

    Raises:
        NoLabelsError: If one of the sources has no labels; see [`~OnlineProbe.open`].
    """

    def __init__(
        self,
        train_source: ImageSource,
        eval_source: ImageSource,
        *,
        image_size: int,
        num_channels: int = 3,
        num_train: int = 5000,
        num_eval: int = 1000,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = dtype
        self._batches: list[list[Batch]] = []
        for source, limit in ((train_source, num_train), (eval_source, num_eval)):
            if source.label_column is None:
                raise NoLabelsError(f"{source.description} has no label column.")
            subset = fixed_subset(source, limit, SUBSET_SEED)
            rows = iterate_once(subset, image_size=image_size, num_channels=num_channels, batch_size=BATCH_SIZE)
            labelled = [batch for batch in map(_labelled_part, rows) if batch is not None]
            if not labelled:
                raise NoLabelsError(f"{source.description} has no labelled image.")
            count = sum(len(batch.images) for batch in labelled)
            if source is train_source and round(HOLDOUT * count) == 0:
                raise NoLabelsError(f"{source.description} has {count} labelled images, too few to hold a tenth out.")
            self._batches.append(labelled)

    @classmethod
    def open(cls, data: DataConfig, config: LDAEConfig, training: "TrainingConfig") -> "OnlineProbe | None":
        """Open the probe of a run by its recipe; `None`, said in the log, where the data has no labels."""
        train_source, eval_source = open_probe_images(data)
        try:
            return cls(
                train_source,
                eval_source,
                image_size=config.image_size,
                num_channels=config.num_channels,
                num_train=training.probe_train_examples,
                num_eval=training.probe_eval_examples,
                dtype=torch.bfloat16 if training.mixed_precision == "bf16" else None,
            )
        except NoLabelsError as error:
            logger.warning("No online probe: %s", error)
            return None

    def __call__(self, model: PreTrainedModel) -> dict[str, Any]:
        """Score a whole model, not a sharded one, which is left in its mode; no random state is touched.

        Returns:
            `ridge_accuracy` and `knn_accuracy` (20 neighbours) at the model's own block and time step, and
            `best_ridge_accuracy` at the best of all blocks and some of the searched time steps, `best_layer` and
            `best_timestep`. Accuracies are fractions of the test subset; held-out images of the training subset choose
            penalties and the best cell.
        """
        train, test = (extract_features(model, batches, dtype=self.dtype) for batches in self._batches)
        some = as_encoder(model).search_timesteps[1::3]  # a search over all of them ends the run
        search = search_features(model, *self._batches, timesteps=some, dtype=self.dtype)
        data = (train.flat[:, 0], train.classes, test.flat[:, 0], test.classes)
        layer, timestep = search.columns[search.chosen]
        return {
            "ridge_accuracy": probe_features("ridge", train, test, seed=SUBSET_SEED).score(0)[0],
            "knn_accuracy": knn_accuracy(*data, k=min(20, len(train.classes))),
            "best_ridge_accuracy": float(search.probes.test[search.chosen]),
            "best_layer": layer,
            "best_timestep": timestep,
        }

    def search(self, model: PreTrainedModel) -> FeatureSearch:
        """Search all blocks and time steps of a whole model on the training subset alone."""
        return search_features(model, self._batches[0], dtype=self.dtype)


def _labelled_part(batch: Batch) -> Batch | None:
    if batch.labels is None:
        return None
    labelled = batch.labels >= 0
    if not labelled.any():
        return None
    return Batch(batch.images[labelled], batch.positions[labelled], batch.labels[labelled])
