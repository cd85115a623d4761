"""Options of the verbs that share checkpoints."""

from typing import Annotated, Literal

from pydantic import Field

from ldae.options import Positional, options


@options
class ExportOptions:
    """Write a checkpoint at a fixed time step for other libraries, which then need nothing of ldae.

    The time step, the latent tokenizer and all that they steer become part of the weights. The written files are
    loaded again and compared with the checkpoint; if they differ by more than 1e-4 (logits and raw activations:
    relative to the largest), nothing is left.

    Args:
        checkpoint: A run's folder, its linear_probe/ for a classifier, or a Hub id.
        format: Target library; transformers and timm are for an l-DAE only.
        output_dir: A new folder.
        timestep: Time step t of the features; by default the config's feature_timestep.
        layer: Block of an l-DAE, counted from 1, or tap of a DDAE; by default the config's.
        image_size: Side of the images in pixels; by default the config's.
        repo_id: Hub id that the model card names; by default the folder's name.
        license: The weights' licence; by default that of the checkpoint's card, or apache-2.0.
        config: YAML file of these options, by name; the command line wins.
    """

    checkpoint: Annotated[str, Positional]
    format: Literal["transformers", "timm", "onnx", "torch-export"]
    output_dir: str
    timestep: int | None = Field(None, ge=0)
    layer: str | None = None
    image_size: int | None = Field(None, ge=1, le=8192)
    repo_id: str | None = None
    license: str | None = None
    config: str | None = None


@options
class CardOptions:
    """Write a run's model card from its files.

    Args:
        checkpoint: A run's folder.
        repo_id: Hub id that the card names; by default the folder's name.
        license: The weights' licence as the Hub spells it; by default apache-2.0.
        update_metadata: Bring the metadata of a card that was written by hand up to date; its text stays.
        config: YAML file of these options, by name; the command line wins.
    """

    checkpoint: Annotated[str, Positional]
    repo_id: str | None = None
    license: str | None = None
    update_metadata: bool = False
    config: str | None = None


@options
class PushToHubOptions:
    """Upload a run's folder to the Hugging Face Hub.

    Args:
        checkpoint: A run's folder, or any folder that save_pretrained wrote.
        repo_id: `namespace/name`, or `name` in your own namespace.
        private: Make a new repository private.
        revision: Branch, created if it is missing; by default main.
        tag: Name of a release for what is pushed, such as v1.0.
        token: Write token; by default the one that is logged in.
        with_code: Add the model's code.
        commit_message: Title of the commit.
        config: YAML file of these options, by name; the command line wins.
    """

    checkpoint: Annotated[str, Positional]
    repo_id: str
    private: bool = False
    revision: str | None = None
    tag: str | None = None
    token: str | None = None
    with_code: bool = True
    commit_message: str | None = None
    config: str | None = None
