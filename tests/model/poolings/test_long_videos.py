"""Chunks of frames: a long video gives the same as all at once, in memory that its activations do not fill."""

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
from families import Family, make_config, make_processor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pllava import PllavaForConditionalGeneration, PllavaModel, PllavaProcessor, modeling_pllava

Pair = tuple[PllavaForConditionalGeneration, PllavaProcessor]
Pixels = Callable[..., torch.Tensor]


def test_chunks_equal_all_frames_at_once(pair: Pair, pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair
    videos, images = [pixels(1, frames=7)[0], pixels(1, frames=13, seed=1)[0]], pixels(1, frames=2, seed=2)[0]
    ids = torch.tensor(
        [
            [model.config.video_token_id] * (2 * model.config.num_video_tokens)
            + [model.config.image_token_id] * (2 * model.config.num_image_tokens)
            + [5, 6, 7]
        ]
    )
    inputs, outputs = {"input_ids": ids, "pixel_values_videos": videos, "pixel_values": images}, []
    for size in (64, 3):
        calls = []
        monkeypatch.setattr(modeling_pllava, "FRAMES_PER_CHUNK", size)
        hook = model.model.vision_tower.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with torch.no_grad():
            outputs.append((model(**inputs), len(calls)))
        hook.remove()
    (whole, one), (in_chunks, several) = outputs
    assert (one, several) == (1, 8)  # of 22 frames
    torch.testing.assert_close(in_chunks.video_hidden_states, whole.video_hidden_states)
    torch.testing.assert_close(in_chunks.image_hidden_states, whole.image_hidden_states)
    torch.testing.assert_close(in_chunks.logits, whole.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("frames_in_cache", "calls"), [(0.5, 7), (2, 4), (1000, 1)])
def test_a_chunk_on_a_cpu_has_the_frames_whose_widest_activation_fits_its_cache(
    model: PllavaForConditionalGeneration,
    pixels: Pixels,
    monkeypatch: pytest.MonkeyPatch,
    frames_in_cache: float,
    calls: int,
    training: bool,
) -> None:
    model, called = copy.deepcopy(model).train(training), []
    whole = model.get_video_features(pixels(1, frames=7)).pooler_output
    widest = 4 * model.config.patch_grid**2 * model.config.vision_config.intermediate_size
    monkeypatch.setattr(modeling_pllava, "CPU_CHUNK_BYTES", int(frames_in_cache * widest))
    model.model.vision_tower.register_forward_hook(lambda *_: called.append(1))
    torch.testing.assert_close(model.get_video_features(pixels(1, frames=7)).pooler_output, whole)
    assert len(called) == calls


def test_hidden_states_and_attentions_pass_through_chunks_whole(
    model: PllavaForConditionalGeneration, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    options, outputs = {"output_hidden_states": True, "output_attentions": True}, []
    for size in (64, 3):
        monkeypatch.setattr(modeling_pllava, "FRAMES_PER_CHUNK", size)
        with torch.no_grad():
            outputs.append(model.get_video_features(pixels(1, frames=8), **options))
    whole, in_chunks = outputs
    layers = model.config.num_vision_layers
    assert len(in_chunks.hidden_states) == layers + 1 and len(in_chunks.attentions) == layers
    for name in ("last_hidden_state", "pooler_output", "hidden_states", "attentions"):
        torch.testing.assert_close(in_chunks[name], whole[name])
    assert {len(part) for part in (*in_chunks.hidden_states, *in_chunks.attentions)} == {8}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return output

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return
        self.storages.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.now -= size


def peak_bytes(model: PllavaModel, frames: int) -> int:
    """The peak of what encoding and pooling a video adds to the memory of its pixels."""
    video = torch.zeros(1, frames, 3, *[model.config.image_size] * 2)
    memory = LiveBytes()
    memory.storages.add(video.untyped_storage()._cdata)
    with torch.no_grad(), memory:
        model.get_video_features(video)
    return memory.peak


@pytest.fixture
def wide(family: Family) -> PllavaModel:
    """A tower whose activations are much larger than its output, as those of real ones are."""
    config = make_config(family, make_processor(family))
    config.vision_config.intermediate_size = 1024
    config.vision_config.num_attention_heads = 2
    return PllavaModel(config).eval()


@pytest.mark.parametrize("pooling", ["average", "slowfast", "merge"])
def test_memory_of_a_long_video_is_that_of_its_features(
    wide: PllavaModel, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_pllava, "CPU_CHUNK_BYTES", 10**12)  # chunks of 64 frames, as on a GPU
    config = wide.config
    values = {"average": [4, 3, 3], "slowfast": [[4, 3, 3], [16, 1, 1]], "merge": [4, 3, 3]}
    config.pooling, config.pooling_shape = pooling, values[pooling]
    short, long = peak_bytes(wide, 128), peak_bytes(wide, 512)
    assert peak_bytes(wide, 16) < short
    of_features = 4 * (512 - 128) * config.patch_grid**2 * config.vision_config.hidden_size
    assert long - short <= of_features * 1.01
    monkeypatch.setattr(modeling_pllava, "FRAMES_PER_CHUNK", 1024)
    assert peak_bytes(wide, 512) - peak_bytes(wide, 128) > of_features * 10, "what the test is to find"
