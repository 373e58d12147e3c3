"""What is known of a model before it is loaded: enough to see whether its answers are there already."""

from dataclasses import dataclass

from transformers import PretrainedConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from ...checkpoint_files import fingerprint
from ...loading import describe_model, load_config, name_quantization


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
        quantization: Such as "nf4", if there is any.
    """

    model: str
    revision: str | None
    adapter: str | None
    adapter_revision: str | None
    alpha: float | None
    pooling_shape: tuple[int, int, int]
    dtype: str
    quantization: str | None

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
            name_quantization(getattr(config, "quantization_config", None)),
        )

    @classmethod
    def read(
        cls,
        model: str | None,
        adapter: str | None = None,
        alpha: float | None = None,
        dtype: str = "auto",
        quantization_config: QuantizationConfigMixin | None = None,
    ) -> "Checkpoint":
        """
        As [`load_model`] will load it with these arguments.

        Raises:
            ValueError: if one of them is not there, or the model is no PLLaVA.
        """
        described = describe_model(model, adapter, alpha, dtype, quantization_config)
        return cls(**described, pooling_shape=tuple(load_config(described["model"]).pooling_shape))
