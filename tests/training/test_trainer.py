"""transformers' Trainer and peft on our models, unchanged: training, accumulation, evaluation, saving."""

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from ldae import (
    DDAEConfig,
    DDAEForImageClassification,
    DDAEForPreTraining,
    LDAEForImageClassification,
    LDAEForPreTraining,
)
from tests.models.small_models import draw_images, open_gates, small_config
from tests.models.test_ddae_pretraining import UNET


def classifier(kind: str):
    torch.manual_seed(0)
    if kind == "ddae":
        return DDAEForImageClassification(DDAEConfig(denoiser_config=UNET, num_labels=2))
    return open_gates(LDAEForImageClassification(small_config(num_labels=2)))


def examples(count: int = 16) -> list[dict[str, object]]:
    """Dark and bright images, which a mean tells apart."""
    images = draw_images(count) * 0.1
    return [{"pixel_values": image + (0.5 if i % 2 else -0.5), "labels": i % 2} for i, image in enumerate(images)]


def trainer(model, folder, data, collate=None, metrics=None, **fields) -> Trainer:
    chosen = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "optim": "sgd"} | fields
    arguments = TrainingArguments(str(folder), report_to="none", save_strategy="no", use_cpu=True, **chosen)
    return Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, data_collator=collate, compute_metrics=metrics
    )


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(1) == prediction.label_ids))}


@pytest.mark.parametrize("kind", ["ldae", "ddae"])
def test_a_classifier_is_trained_evaluated_and_saved(kind, tmp_path):
    fields = {"max_steps": 30, "optim": "adamw_torch", "learning_rate": 3e-3}
    training = trainer(classifier(kind), tmp_path, examples(), metrics=accuracy, **fields)
    before = training.evaluate()
    training.train()
    after = training.evaluate()
    assert after["eval_loss"] < before["eval_loss"] and after["eval_accuracy"] == 1
    training.save_model()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    pixels = draw_images(2)
    torch.testing.assert_close(loaded(pixels).logits, training.model.eval()(pixels).logits)


@pytest.mark.parametrize("kind", ["ldae", "ddae", "pretraining"])
def test_accumulated_batches_train_as_one(kind, tmp_path):
    weights = []
    for size, accumulation in ((8, 1), (4, 2)):
        if kind == "pretraining":
            torch.manual_seed(0)
            model = open_gates(LDAEForPreTraining(small_config()))
            data = [{"pixel_values": x["pixel_values"], "position": i} for i, x in enumerate(examples())]
        else:
            model, data = classifier(kind), examples()

        def collate(images, model=model):
            pixel_values = torch.stack([image["pixel_values"] for image in images])
            positions = torch.tensor([image["position"] for image in images])
            timesteps, noise = model.draw_corruption(positions, seed=0)
            return {"pixel_values": pixel_values, "timesteps": timesteps, "noise": noise}

        batch = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        fields = {**batch, "remove_unused_columns": False}
        training = trainer(model, tmp_path, data, collate if kind == "pretraining" else None, **fields)
        training.train()
        weights.append({name: weight.clone() for name, weight in model.named_parameters()})
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-5, rtol=1e-4)


def test_pre_training_is_trained_evaluated_and_saved(tmp_path):
    model = open_gates(LDAEForPreTraining(small_config()))

    def collate(images):
        pixel_values = torch.stack([image["pixel_values"] for image in images])
        timesteps, noise = model.draw_corruption(torch.randint(2**40, (len(images),)), seed=0)
        return {"pixel_values": pixel_values, "timesteps": timesteps, "noise": noise}

    fields = {"max_steps": 30, "optim": "adamw_torch", "label_names": ["pixel_values"]}  # as examples for MAE do
    training = trainer(model, tmp_path, examples(), collate, **fields)
    before = training.evaluate()["eval_loss"]
    training.train()
    assert training.evaluate()["eval_loss"] < 0.8 * before
    training.save_model()
    loaded = LDAEForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("kind", ["ldae", "ddae"])
def test_pre_training_needs_no_collator(kind, tmp_path):
    torch.manual_seed(0)
    model = (
        open_gates(LDAEForPreTraining(small_config()))
        if kind == "ldae"
        else DDAEForPreTraining(DDAEConfig(denoiser_config=UNET))
    )
    fields = {"max_steps": 30, "optim": "adamw_torch", "label_names": ["pixel_values"]}
    training = trainer(model, tmp_path, examples(), **fields)
    before = training.evaluate()["eval_loss"]
    training.train()
    assert training.evaluate()["eval_loss"] < 0.9 * before


@pytest.mark.parametrize("kind", ["ldae", "ddae"])
def test_a_peft_adapter_is_trained_saved_loaded_and_merged(kind, tmp_path):
    base = classifier(kind)
    targets = ["q_proj", "v_proj"] if kind == "ldae" else ["to_q", "to_v"]
    config = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["classifier"])
    adapted = peft.get_peft_model(base, config)
    frozen = {name: value.clone() for name, value in adapted.named_parameters() if not value.requires_grad}
    trainer(adapted, tmp_path, examples(), max_steps=3, learning_rate=0.5).train()
    assert all(torch.equal(value, dict(adapted.named_parameters())[name]) for name, value in frozen.items())
    adapted.eval().save_pretrained(tmp_path / "adapter")
    pixels = draw_images(2)
    expected = adapted(pixels).logits
    loaded = peft.PeftModel.from_pretrained(classifier(kind).eval(), tmp_path / "adapter")
    torch.testing.assert_close(loaded(pixels).logits, expected)
    assert not torch.allclose(classifier(kind).eval()(pixels).logits, expected, atol=1e-3)
    torch.testing.assert_close(loaded.merge_and_unload()(pixels).logits, expected, atol=1e-4, rtol=1e-4)
