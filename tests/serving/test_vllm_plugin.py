"""The reader of videos for vLLM, without vLLM: it takes the frames that the processor takes of a file."""

import asyncio
import base64
import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from video_files import moving_frames, write_video

from pllava import NANO, PllavaConfig, PllavaProcessor
from pllava.media import MediaRefused
from pllava.serving import vllm_plugin
from pllava.serving.vllm_plugin import CONNECTOR, LOADER, PllavaVideoLoader
from pllava.video_source_pllava import VideoDecodeError


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """150 frames, 25 a second."""
    return write_video(tmp_path_factory.mktemp("clip") / "long.mp4", moving_frames(150), fps=25)


def load(clip: Path, **options) -> tuple[np.ndarray, dict]:
    return PllavaVideoLoader().load_bytes(clip.read_bytes(), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"num_frames": 4},
        {"num_frames": 9},
        {"num_frames": 200},
        {"num_frames": 4, "start": 1.5, "end": 3},
        {"num_frames": 32, "fps": 2},
        {"num_frames": -1},
    ],
    ids=str,
)
def test_pixels_equal_those_of_the_file(processor: PllavaProcessor, clip: Path, options: dict) -> None:
    frames, metadata = load(clip, **options)
    bounds = {name: options[name] for name in ("start", "end") if name in options}
    number = {"fps": options["fps"]} if "fps" in options else {"num_frames": options["num_frames"]}
    number = {} if number == {"num_frames": -1} else number
    expected = processor.video_processor({"path": clip, **bounds}, return_tensors="pt", return_metadata=True, **number)
    read = processor.video_processor(
        frames,
        video_metadata=[{name: value for name, value in metadata.items() if name != "do_sample_frames"}],
        do_sample_frames=metadata["do_sample_frames"],
        return_tensors="pt",
    )
    assert metadata["do_sample_frames"] == (options["num_frames"] == -1)
    assert torch.equal(read["pixel_values_videos"], expected["pixel_values_videos"])
    if not metadata["do_sample_frames"]:
        assert metadata["frames_indices"] == list(expected["video_metadata"][0].frames_indices)
    assert (metadata["total_num_frames"], metadata["fps"], metadata["duration"]) == (150, 25, 6)
    json.dumps(metadata)  # plain values: vLLM hashes them


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "`num_frames` is 0: give 1 to 512, or -1 alone"),
        ({"num_frames": 513}, "`num_frames` is 513"),
        ({"num_frames": 2.5}, "`num_frames` is 2.5"),
        ({"num_frames": "8"}, "`num_frames` is '8'"),
        ({"num_frames": -1, "start": 1}, "or -1 alone"),
        ({"num_frames": 8, "fps": 2}, "either `num_frames` or `fps`"),
        ({"num_frames": 32, "fps": -1}, "`fps` is -1: give a positive number"),
        ({"num_frames": 8, "start": "1"}, "`start` is '1': give a number"),
        ({"num_frames": 8, "start": 7}, "at or past the video's end: the video is 6.000 s long"),
        (
            {"frame_recovery": True, "backend": "opencv"},
            r"num_frames, fps, start and end; got \['backend', 'frame_rec",
        ),
    ],
    ids=str,
)
def test_wrong_options_are_refused(clip: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(clip, **options)


def test_files_are_read_within_the_limits() -> None:
    with pytest.raises(VideoDecodeError, match="ffmpeg finds no video"):
        PllavaVideoLoader().load_bytes(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", num_frames=4)


# --- what vLLM is told -----------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch) -> SimpleNamespace:
    """Stand-ins for the two registries of vLLM, after `register`."""

    class Nothing:
        @staticmethod
        def verify_and_update_model_config(model_config):
            model_config.updated = True

    class Connector:
        def __init__(self, media_io_kwargs=None):
            self.media_io_kwargs = media_io_kwargs

    loaders, connectors, configs = {}, {}, {vllm_plugin.BACKEND: Nothing}

    def registry(classes: dict) -> SimpleNamespace:
        return SimpleNamespace(register=lambda name: lambda cls: classes.update({name: cls}))

    modules = {
        "vllm.multimodal.media": {"MEDIA_CONNECTOR_REGISTRY": registry(connectors), "MediaConnector": Connector},
        "vllm.model_executor.models.config": {"MODELS_CONFIG_MAP": configs, "VerifyAndUpdateConfig": Nothing},
        "vllm.multimodal.video": {"VIDEO_LOADER_REGISTRY": registry(loaders)},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    vllm_plugin.register()
    defaults = configs[vllm_plugin.BACKEND].verify_and_update_model_config
    return SimpleNamespace(loaders=loaders, connectors=connectors, defaults=defaults)


@pytest.mark.parametrize(
    ("given", "processor_kwargs", "expected"),
    [
        ({}, None, {"video": {"video_backend": LOADER, "num_frames": 16}}),
        ({}, {"num_frames": 8}, {"video": {"video_backend": LOADER, "num_frames": 8}}),
        ({"video": {"num_frames": -1}}, None, {"video": {"video_backend": LOADER, "num_frames": -1}}),
        ({"video": {"fps": 2}}, None, {"video": {"video_backend": LOADER, "fps": 2}}),
        ({"video": {"video_backend": "opencv"}}, None, {"video": {"video_backend": "opencv"}}),
    ],
    ids=str,
)
def test_defaults_leave_what_was_said(registered, given: dict, processor_kwargs: dict | None, expected: dict) -> None:
    media = SimpleNamespace(media_io_kwargs=given, mm_processor_kwargs=processor_kwargs)
    model_config = SimpleNamespace(hf_config=PllavaConfig.from_pretrained(NANO), multimodal_config=media)
    registered.defaults(model_config)
    assert media.media_io_kwargs == expected and model_config.updated
    assert registered.loaders == {LOADER: PllavaVideoLoader}


def test_connector_reads_media_through_the_gate(registered, clip: Path, tmp_path: Path) -> None:
    """A file below the allowed folder, and data URIs; nothing else."""
    reader = SimpleNamespace(load_bytes=lambda data: data)
    make = registered.connectors[CONNECTOR]
    connector = make({"video": {}}, allowed_local_media_path=str(clip.parent), allowed_media_domains=["example.org"])
    assert connector.media_io_kwargs == {"video": {}}
    for address in (f"file://{clip}", f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"):
        assert connector.load_from_url(address, reader, fetch_timeout=1) == clip.read_bytes()
        assert asyncio.run(connector.load_from_url_async(address, reader)) == clip.read_bytes()
    outside = write_video(tmp_path / "outside.mp4", moving_frames(2))
    for refused in (f"file://{outside}", "http://127.0.0.1/a.mp4", "http://169.254.169.254/", "ftp://example.org/a"):
        with pytest.raises(MediaRefused):
            connector.load_from_url(refused, reader)
    with pytest.raises(MediaRefused):
        make().load_from_url(f"file://{clip}", reader)


def test_other_models_are_left_alone(registered) -> None:
    other = SimpleNamespace(hf_config=SimpleNamespace(model_type="llava"), multimodal_config=None)
    registered.defaults(other)
    assert other.updated


def test_a_vllm_of_another_shape_still_serves_other_models(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.multimodal.video", None)
    with pytest.warns(UserWarning, match=r"docs/serving\.md"):
        vllm_plugin.register()


def test_vllm_finds_the_plugin_in_the_package() -> None:
    (plugin,) = entry_points(group="vllm.general_plugins", name="pllava")
    assert plugin.load() is vllm_plugin.register
