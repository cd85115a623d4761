"""
Run transformers' own common tests on the four models.

They ship in transformers' source archive alone, which `make test` fetches; LDAE_TRANSFORMERS_TESTS names its folder.
The archive's version must be the installed one's.
"""

import importlib
import os
import sys
import tempfile
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
import transformers.utils
from transformers import initialization as init

from ldae import LDAEBackbone, LDAEConfig, LDAEForImageClassification, LDAEForPreTraining, LDAEModel
from ldae.models.modeling_ldae import COUNTS_EMBEDDINGS, LDAEPreTrainedModel
from ldae.models.transformer_ldae import LDAEHeadProjection, LDAEModulation


PACKAGE = "transformers_common_tests"
SOURCE = os.environ.get("LDAE_TRANSFORMERS_TESTS")
if SOURCE is None:
    version = transformers.__version__
    pytest.skip(
        "transformers' common tests come with its source archive: run `make test`, or unpack "
        f"transformers-{version}.tar.gz "
        "and set LDAE_TRANSFORMERS_TESTS to its folder.",
        allow_module_level=True,
    )

# What the common tests import from folders that the archive leaves out: nothing that an encoder of images needs.
CONFIG_KWARGS: dict[str, Any] = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}
ABSENT: dict[str, dict[str, Any]] = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {
        "config_common_kwargs": {key: CONFIG_KWARGS[key] for key in CONFIG_KWARGS if hasattr(LDAEConfig(), key)}
    },
}


def load_common_tests(source: Path) -> tuple[ModuleType, ...]:
    """The archive's common test modules, as modules of a package of their own."""
    metadata = (source / "PKG-INFO").read_text(encoding="utf-8") if (source / "PKG-INFO").exists() else ""
    if f"\nVersion: {transformers.__version__}\n" not in metadata:
        raise ValueError(
            f"LDAE_TRANSFORMERS_TESTS={str(source)!r} is not the source archive of transformers "
            f"{transformers.__version__}, which is installed."
        )
    package = ModuleType(PACKAGE)
    package.__path__ = [str(source / "tests")]
    sys.modules[PACKAGE] = package
    for name, content in ABSENT.items():
        folder = ModuleType(f"{PACKAGE}.{name.partition('.')[0]}")
        folder.__path__ = []
        module = ModuleType(f"{PACKAGE}.{name}")
        vars(module).update(content)
        sys.modules |= {folder.__name__: folder, module.__name__: module}
    # It would import the tests' folder as transformers.
    with mock.patch.object(transformers.utils, "direct_transformers_import", lambda path: transformers):
        names = ("test_modeling_common", "test_configuration_common", "test_backbone_common")
        return tuple(importlib.import_module(f"{PACKAGE}.{name}") for name in names)


modeling, configuration, backbone = load_common_tests(Path(SOURCE))
# The tests of training pass over classes without a loss, which they know by these tables.
modeling.MODEL_MAPPING_NAMES = {**modeling.MODEL_MAPPING_NAMES, "ldae": "LDAEModel"}
modeling.MODEL_FOR_BACKBONE_MAPPING_NAMES = {**modeling.MODEL_FOR_BACKBONE_MAPPING_NAMES, "ldae": "LDAEBackbone"}


def large_epsilon(config: LDAEConfig) -> None:
    """Theirs sets the epsilon under every name in use, and our configuration refuses names that it has not."""
    config.layer_norm_eps = 1.0


modeling.set_config_for_less_flaky_test = large_epsilon


class ModelTester:
    """A model of two blocks and its inputs, under the names that the common tests look for."""

    batch_size, image_size, patch_size, seq_length, latent_dim = 3, 16, 4, 16, 8
    hidden_size, num_attention_heads = 32, 4
    is_training = True

    def __init__(self, parent: unittest.TestCase, encoder: int, decoder: int):
        self.parent, self.encoder, self.decoder = parent, encoder, decoder
        self.num_hidden_layers = encoder + decoder

    def get_config(self) -> LDAEConfig:
        return LDAEConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.encoder,
            decoder_num_hidden_layers=self.decoder,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=64,
            latent_dim=self.latent_dim,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[LDAEConfig, dict[str, torch.Tensor]]:
        pixels = modeling.floats_tensor([self.batch_size, 3, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": pixels}


class PreTrainingTester(ModelTester):
    def prepare_config_and_inputs_for_common(self) -> tuple[LDAEConfig, dict[str, torch.Tensor]]:
        config, inputs = super().prepare_config_and_inputs_for_common()
        noise = modeling.floats_tensor([self.batch_size, self.seq_length, self.latent_dim])
        return config, inputs | {"timesteps": torch.tensor([0, 500, 999]), "noise": noise}


class CommonTests(modeling.ModelTesterMixin):
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True

    def _prepare_for_class(self, inputs: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = super()._prepare_for_class(inputs, model_class, return_labels)
        if return_labels and model_class is LDAEForImageClassification:
            inputs["labels"] = torch.zeros(self.model_tester.batch_size, dtype=torch.long)
        if "noise" in inputs and inputs["noise"].ndim == 2:  # some tests make the noise of masked autoencoders
            inputs["noise"] = torch.randn(*inputs["noise"].shape, self.model_tester.latent_dim)
        return inputs

    def test_torch_save_load(self) -> None:
        """Theirs stumbles over boolean buffers, such as `fitted`."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            state = model_class(config).state_dict()
            with tempfile.TemporaryDirectory() as folder:
                torch.save(state, Path(folder, "pytorch_model.bin"))
                loaded = modeling.load_state_dict(str(Path(folder, "pytorch_model.bin")))
            self.assertEqual(state.keys(), loaded.keys())
            self.assertTrue(all(torch.equal(state[key], loaded[key]) for key in state))

    @unittest.skipIf(not COUNTS_EMBEDDINGS, "up to 5.22 a list of hidden states left the embeddings out of the count")
    def test_can_capture_specific_layers_hidden_states(self) -> None:
        super().test_can_capture_specific_layers_hidden_states()

    @unittest.skipIf(not COUNTS_EMBEDDINGS, "up to 5.22 this test stumbled over boolean buffers, such as `fitted`")
    def test_keep_in_fp32_modules(self) -> None:
        super().test_keep_in_fp32_modules()

    def test_model_get_set_embeddings(self) -> None:
        """Tokens come from a linear map of patches, where the common test expects a table of words."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Linear)
            self.assertIsNone(model.get_output_embeddings())


class TestEncoder(CommonTests, unittest.TestCase):
    all_model_classes = (LDAEModel, LDAEForImageClassification, LDAEBackbone)

    def setUp(self) -> None:
        self.model_tester = ModelTester(self, encoder=2, decoder=0)


class TestPreTraining(CommonTests, unittest.TestCase):
    all_model_classes = (LDAEForPreTraining,)
    additional_model_inputs = ("timesteps",)

    def setUp(self) -> None:
        self.model_tester = PreTrainingTester(self, encoder=1, decoder=1)


class OpenGates:
    """The same tests with gates and head drawn at random: at zero, as they start, every block is the identity."""

    def setUp(self) -> None:
        super().setUp()
        initialise = LDAEPreTrainedModel._init_weights

        def draw(model: LDAEPreTrainedModel, module: torch.nn.Module) -> None:
            initialise(model, module)
            if isinstance(module, LDAEModulation | LDAEHeadProjection):
                init.normal_(module.weight, std=0.5)

        patch = mock.patch.object(LDAEPreTrainedModel, "_init_weights", draw)
        patch.start()
        self.addCleanup(patch.stop)


class TestEncoderWithOpenGates(OpenGates, TestEncoder):
    pass


class TestPreTrainingWithOpenGates(OpenGates, TestPreTraining):
    pass


class TestConfiguration(unittest.TestCase):
    def test_config(self) -> None:
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
        configuration.ConfigTester(self, LDAEConfig, has_text_modality=False, **sizes).run_common_tests()


class TestBackbone(backbone.BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (LDAEBackbone,)
    config_class = LDAEConfig

    def setUp(self) -> None:
        self.model_tester = ModelTester(self, encoder=4, decoder=0)
