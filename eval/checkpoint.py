"""What is known of a model before it is loaded: enough to see whether its answers are there already."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from ..loading import load_config

BLOCKS, BLOCK = 64, 1 << 16  # of a file are read: a training step changes every tensor that it trains


@dataclass(frozen=True)
class Checkpoint:
    """
    Which weights answer, and how they are used.

    Args:
        model: Directory or Hub id.
        revision: The commit on the Hub, or the directory's `fingerprint`.
        adapter, adapter_revision: The same of the adapter, if there is one.
        alpha: Its strength.
        pooling_shape: T' x h' x w'.
        dtype: Such as "bfloat16".
    """

    model: str
    revision: str | None
    adapter: str | None
    adapter_revision: str | None
    alpha: float | None
    pooling_shape: tuple[int, int, int]
    dtype: str

    @classmethod
    def of(
        cls, config: PretrainedConfig, dtype: str, adapter: str | None = None, alpha: float | None = None
    ) -> "Checkpoint":
        """Of a model with this config, that a PEFT `adapter` may be added to."""
        return cls(
            config.name_or_path,
            getattr(config, "_commit_hash", None) or fingerprint(config.name_or_path),
            adapter,
            fingerprint(adapter) if adapter else None,
            alpha,
            tuple(config.pooling_shape),
            dtype,
        )

    @classmethod
    def read(
        cls, model: str | None, adapter: str | None = None, alpha: float | None = None, dtype: str = "auto"
    ) -> "Checkpoint":
        """
        As [`load_model`] will load it with these arguments.

        Raises:
            ValueError: if one of them is not there, or the model is no PLLaVA.
        """
        if adapter is not None:
            from peft import PeftConfig

            peft = PeftConfig.from_pretrained(adapter)
            model = model or peft.base_model_name_or_path
            alpha = peft.lora_alpha if alpha is None else alpha
        config = load_config(model)
        return cls.of(config, str(config.dtype).removeprefix("torch.") if dtype == "auto" else dtype, adapter, alpha)


def fingerprint(directory: str) -> str | None:
    """
    Of the weights and configs in a local directory; None for what is none. Of large files it reads blocks at equal
    distances, so that 60 GB take a moment.
    """
    folder = Path(directory)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for block in range(BLOCKS):
                content.seek(block * size // BLOCKS)
                digest.update(content.read(BLOCK))
    return digest.hexdigest()[:16]
