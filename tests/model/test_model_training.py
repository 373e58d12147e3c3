"""Training the model: loss, gradients, and activations that are saved."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_inputs import encode, mixed_chats

from pllava import PllavaForConditionalGeneration, PllavaProcessor


@pytest.fixture(scope="module")
def chats(clips: list[Path]) -> list[list[dict]]:
    return mixed_chats(clips)


@pytest.fixture
def trainable(model: PllavaForConditionalGeneration) -> PllavaForConditionalGeneration:
    return copy.deepcopy(model).train()


@pytest.fixture
def training_batch(processor: PllavaProcessor, chats: list) -> dict[str, torch.Tensor]:
    batch = encode(processor, [chats[2], chats[4]], "right")
    answer = torch.zeros_like(batch["attention_mask"]).bool()
    answer[:, -5:] = True
    return {**batch, "labels": batch["input_ids"].masked_fill(~answer | ~batch["attention_mask"].bool(), -100)}


def test_loss_is_the_mean_cross_entropy_of_the_labels(
    model: PllavaForConditionalGeneration, training_batch: dict[str, torch.Tensor]
) -> None:
    with torch.no_grad():
        outputs = model(**training_batch)
    logits, labels = outputs.logits[:, :-1].log_softmax(-1), training_batch["labels"][:, 1:]
    chosen = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100]
    assert len(chosen) > 3
    torch.testing.assert_close(outputs.loss, -chosen.mean())
    with torch.no_grad():
        accumulated = model(**training_batch, num_items_in_batch=torch.tensor(20)).loss
    torch.testing.assert_close(accumulated, -chosen.sum() / 20)


def saved_shapes(encode_clip: Callable[[], torch.Tensor]) -> list[torch.Size]:
    """The shapes of the tensors that encoding a video saves for the backward pass."""
    shapes = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        shapes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encode_clip().sum().backward()
    return shapes


def test_a_frozen_tower_saves_no_activations(
    trainable: PllavaForConditionalGeneration, pixels: Callable[..., torch.Tensor]
) -> None:
    def encode_clip(video: torch.Tensor) -> torch.Tensor:
        return trainable.get_video_features(video).pooler_output

    of_all = saved_shapes(lambda: encode_clip(pixels(1)))
    tower = dict(trainable.model.vision_tower.named_parameters())
    assert all(tower[name].grad.any() for name in tower if ".mlp." in name)

    trainable.zero_grad()
    trainable.model.vision_tower.requires_grad_(False)
    trainable.enable_input_require_grads()  # as PEFT does for gradient checkpointing, on the tower's embeddings, too
    features = trainable.model.encode_frames(pixels(1)[0]).last_hidden_state
    of_projector = saved_shapes(lambda: trainable.model.pool([features])[0])
    assert saved_shapes(lambda: encode_clip(pixels(1))) == of_projector and len(of_projector) < len(of_all) / 2
    assert all(parameter.grad is None for parameter in trainable.model.vision_tower.parameters())
    assert all(parameter.grad.any() for parameter in trainable.model.multi_modal_projector.parameters())
    pixels_with_gradient = pixels(1).requires_grad_()
    encode_clip(pixels_with_gradient).square().sum().backward()
    assert pixels_with_gradient.grad.any(), "pixels may require a gradient"


@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_checkpointing_gives_equal_gradients(
    trainable: PllavaForConditionalGeneration, training_batch: dict[str, torch.Tensor], frozen: bool
) -> None:
    if frozen:
        trainable.model.vision_tower.requires_grad_(False)

    def gradients() -> dict[str, torch.Tensor]:
        trainable.zero_grad()
        trainable(**training_batch).loss.backward()
        return {name: p.grad.clone() for name, p in trainable.named_parameters() if p.grad is not None}

    plain = gradients()
    trainable.gradient_checkpointing_enable({"use_reentrant": False})
    assert trainable.is_gradient_checkpointing
    torch.testing.assert_close(gradients(), plain)
    assert any("vision_tower" in name for name in plain) is not frozen
