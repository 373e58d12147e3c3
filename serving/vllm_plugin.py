"""
A plugin for vLLM, which finds it where this package is installed.

1. PLLaVA's videos are decoded and sampled as in transformers. vLLM's own reader takes 32 frames, from the first to the
   last, and tells the processor not to sample. The model pools these into as many tokens, so nothing would fail, but
   it would see other frames than in its training.
2. With VLLM_MEDIA_CONNECTOR=pllava in the environment, media come through the gate of `media/`, which applies vLLM's
   --allowed-media-domains and --allowed-local-media-path, denies what they do not allow, and checks each redirect.
"""

import asyncio
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..video_decoding_pllava import load_frames
from ..video_sampling_pllava import MAX_FRAMES, sample_frames

if TYPE_CHECKING:
    from vllm.config import ModelConfig

LOADER = CONNECTOR = "pllava"  # their names at vLLM
BACKEND = "TransformersMultiModalForCausalLM"  # vLLM's class for models that it runs with transformers' code
ALL = -1  # frames
UNSAID = 32  # the `num_frames` that vLLM passes if nobody asks for a number


class PllavaVideoLoader:
    """Decodes videos for vLLM, within the limits of `video_source_pllava.py`."""

    def load_bytes(
        self,
        data: bytes,
        num_frames: int = ALL,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        **unknown: Any,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Args:
            data: The bytes of a file.
            num_frames: How many frames to take, 512 at most; -1 reads all, of which the processor then chooses.
            fps: How many frames to take per second, instead of `num_frames`.
            start, end: Bounds of the sub-clip in seconds.

        Returns:
            The frames, `(frames, height, width, 3)` uint8 RGB, and vLLM's metadata.

        Raises:
            VideoDecodeError: if it is not a video that can be decoded, or the sub-clip is not in it.
            ValueError: if an option is unknown or has a wrong value.
        """
        if unknown:
            raise ValueError(f"PLLaVA's reader of videos takes num_frames, fps, start and end; got {sorted(unknown)}")
        for name, value in {"fps": fps, "start": start, "end": end}.items():
            if not isinstance(value, int | float | None):
                raise ValueError(f"`{name}` is {value!r}: give a number")
        if fps is not None and num_frames != UNSAID:
            raise ValueError("Pass either `num_frames` or `fps`, not both")
        reads_all = num_frames == ALL and (start, end) == (None, None)
        if not reads_all and (not isinstance(num_frames, int) or not 1 <= num_frames <= MAX_FRAMES):
            raise ValueError(f"`num_frames` is {num_frames!r}: give 1 to {MAX_FRAMES}, or {ALL} alone for all frames")
        sampler = partial(sample_frames, num_frames=num_frames, fps=fps, start=start, end=end)
        frames, metadata = load_frames(data, None if reads_all else sampler)
        return frames, {
            "total_num_frames": metadata.total_num_frames,
            "fps": metadata.fps,
            "duration": metadata.duration,
            "video_backend": metadata.video_backend,
            "frames_indices": metadata.frames_indices,
            "do_sample_frames": reads_all,
        }


def register() -> None:
    """Register the loader, have it read PLLaVA's videos, and offer the gate. vLLM calls this in all its processes."""
    try:
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
        from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
        from vllm.multimodal.video import VIDEO_LOADER_REGISTRY
    except ImportError as error:  # must not keep vLLM from serving other models
        warnings.warn(f"vLLM will read PLLaVA's videos itself, see docs/serving.md: {error}", stacklevel=2)
        return
    others = MODELS_CONFIG_MAP.get(BACKEND, VerifyAndUpdateConfig)

    class Defaults(others):
        @staticmethod
        def verify_and_update_model_config(model_config: "ModelConfig") -> None:
            others.verify_and_update_model_config(model_config)
            if model_config.hf_config.model_type == "pllava":
                _set_defaults(model_config)

    VIDEO_LOADER_REGISTRY.register(LOADER)(PllavaVideoLoader)
    MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)(type("GatedConnector", (_Gated, MediaConnector), {}))
    MODELS_CONFIG_MAP[BACKEND] = Defaults


class _Gated:
    """Changes vLLM's `MediaConnector`, which makes one for each request: it reads media through the gate."""

    def __init__(
        self,
        *args: Any,
        allowed_local_media_path: str = "",
        allowed_media_domains: list[str] | None = None,
        **options: Any,
    ):
        from ..media import MediaGate

        super().__init__(*args, **options)
        folders = [allowed_local_media_path] if allowed_local_media_path else []
        self.gate = MediaGate(allowed_media_domains or (), folders)

    def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """
        Return what `media_io` makes of the file. The gate's own limit of time replaces `fetch_timeout`.

        Raises:
            MediaRefused: if it may not be read, or exceeds a limit.
        """
        with self.gate.read(url).file as file:
            file.seek(0)
            return media_io.load_bytes(file.read())

    async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """As `load_from_url`, in a thread."""
        return await asyncio.to_thread(self.load_from_url, url, media_io)


def _set_defaults(model_config: "ModelConfig") -> None:
    """Set what `--media-io-kwargs` leaves open: the loader, and the number of frames of a request that names none."""
    media = model_config.multimodal_config
    video = media.media_io_kwargs.setdefault("video", {})
    if video.setdefault("video_backend", LOADER) == LOADER and "fps" not in video:
        asked = (media.mm_processor_kwargs or {}).get("num_frames")
        video.setdefault("num_frames", asked or model_config.hf_config.num_frames)
