"""The cache of the vision tower's features: its keys, its size limit, and its use in training."""

import copy
import http.server
import threading
from functools import partial

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from trl import SFTConfig

from pllava import lora_config
from pllava.data.media import find_medium
from pllava.train import VideoChatCollator, build_trainer
from pllava.train.loader.feature_cache import FeatureCache


@pytest.mark.parametrize("change", ["clip", "bounds", "sampling", "tower", "layers", "preparation"])
def test_key_depends_on(processor, model, clips, tmp_path, change):
    def key(clip=clips[0], sampling="uniform", model=model.model, processor=processor, **bounds):
        medium = find_medium({"path": str(clip), **bounds})
        return FeatureCache(tmp_path, model, processor).key(medium, sampling)

    other = {"clip": {"clip": clips[1]}, "bounds": {"end": 1.0}, "sampling": {"sampling": "random"}}
    assert key() == key(end=99.0)  # the same frames
    other["tower"], other["layers"] = ({"model": copy.deepcopy(model.model)} for _ in range(2))
    next(other["tower"]["model"].vision_tower.parameters()).data += 1
    other["layers"]["model"].config.vision_feature_layer = [1, 2]  # of the same tower
    other["preparation"] = {"processor": copy.deepcopy(processor)}
    other["preparation"]["processor"].video_processor.image_mean = [0.5, 0.5, 0.5]
    assert key() == key(clip=str(clips[0])) != key(**other[change])


def test_key_is_equal_for_all_sources_of_a_clip(processor, model, clips, tmp_path):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(clips[0].parent))
    collator = VideoChatCollator(processor, features=FeatureCache(tmp_path / "cache", model.model, processor))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{clips[0].name}"
        sources = [str(clips[0]), clips[0].as_uri(), address, {"video": {"path": str(clips[0])}}]
        sources += [{"path": "0.mp4", "bytes": clips[0].read_bytes()}]
        pixels, keys = zip(*(collator.read_video({"video": source}) for source in sources), strict=True)
        server.shutdown()
    assert len(set(keys)) == 1 and all(torch.equal(pixels[0], other) for other in pixels)
    features = torch.ones(4, 36, 32)
    collator.features.save(keys[0], features)
    assert all(torch.equal(collator.read_video({"video": source})[0], features) for source in sources[:2])


def test_full_cache_saves_no_more(processor, model, tmp_path, caplog):
    def fill(names, processes=1):
        cache = FeatureCache(tmp_path, model.model, processor, max_bytes=10_000, processes=processes)
        for name in names:
            cache.save(name, torch.zeros(1000))
        return [cache.load(name) is not None for name in names]

    assert fill(["a"]) == [True] and fill(["b", "c"], processes=2) == [False, False]
    assert fill(["b", "c"]) == [True, False] and fill(["d"]) == [False]
    assert caplog.text.count("has reached its size") == 3


@pytest.mark.parametrize("batch_size", [1, 2])
def test_evaluations_do_not_change_the_cache(processor, checkpoint, clips, tmp_path, batch_size):
    turns = [{"role": "user", "content": [{"type": "video"}]}]
    turns += [{"role": "assistant", "content": [{"type": "text", "text": "It leaves."}]}]
    rows = [{"messages": turns, "videos": [str(clip)]} for clip in clips]

    def cached(name, **evaluation):
        args = SFTConfig(
            str(tmp_path / name),
            max_steps=3,
            per_device_train_batch_size=1,
            per_device_eval_batch_size=batch_size,
            use_cpu=True,
            bf16=False,
            report_to="none",
            eval_strategy="steps" if evaluation else "no",
            eval_steps=1,
            eval_on_start=bool(evaluation),
        )
        model, train = AutoModelForImageTextToText.from_pretrained(checkpoint), Dataset.from_list(rows[:1])
        cache = tmp_path / f"{name}-cache"
        build_trainer(model, processor, train, args, lora_config(r=4), feature_cache=str(cache), **evaluation).train()
        return {file.name: load_file(file)["features"] for file in cache.rglob("*.safetensors")}

    alone, evaluated = cached("alone"), cached("evaluated", eval_dataset=Dataset.from_list(rows[1:]))
    assert len(alone) == 1 and alone.keys() == evaluated.keys()
    assert all(torch.equal(features, evaluated[name]) for name, features in alone.items())
