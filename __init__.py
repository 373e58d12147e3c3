"""
PLLaVA (arXiv 2404.16994): an image LLaVA that reads videos by pooling the visual tokens of their frames.

Importing this package registers the architecture with transformers' Auto classes and pipelines, which then need no
`trust_remote_code`. `NANO` is the path of the small trained checkpoint in the package.
"""

import logging
import sys
from pathlib import Path

# `python -m pllava.nano` imports this first. torchao, which transformers imports, makes torch log a deprecation there
if sys.argv[:1] == ["-m"]:
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .adapters import check_model, lora_config, set_alpha
from .configuration_pllava import PllavaConfig
from .loading import load_model, quantization_config
from .modeling_pllava import PllavaForConditionalGeneration, PllavaModel, PllavaPreTrainedModel
from .pipeline_pllava import VideoTextToTextPipeline
from .processing_pllava import PllavaProcessor
from .video_processing_pllava import PllavaVideoProcessor

NANO = str(Path(__file__).parent / "nano" / "checkpoint")


def model_path(name: str) -> str:
    """Return the directory or Hub id to pass to `from_pretrained`: `name`, or the path of `NANO` for "nano"."""
    return NANO if name == "nano" else name


AutoConfig.register("pllava", PllavaConfig)
AutoModel.register(PllavaConfig, PllavaModel)
AutoModelForCausalLM.register(PllavaConfig, PllavaForConditionalGeneration)  # for AutoPeftModelForCausalLM
AutoModelForImageTextToText.register(PllavaConfig, PllavaForConditionalGeneration)
AutoModelForMultimodalLM.register(PllavaConfig, PllavaForConditionalGeneration)
AutoProcessor.register(PllavaConfig, PllavaProcessor)
AutoVideoProcessor.register(PllavaConfig, PllavaVideoProcessor)
PIPELINE_REGISTRY.register_pipeline(
    "video-text-to-text", VideoTextToTextPipeline, pt_model=AutoModelForImageTextToText, type="multimodal"
)

# Saved checkpoints contain the code, so that they load with `trust_remote_code` where this package is not installed
PllavaConfig.register_for_auto_class()
PllavaModel.register_for_auto_class("AutoModel")
PllavaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
PllavaProcessor.register_for_auto_class()
PllavaVideoProcessor.register_for_auto_class()

__all__ = [
    "NANO",
    "PllavaConfig",
    "PllavaForConditionalGeneration",
    "PllavaModel",
    "PllavaPreTrainedModel",
    "PllavaProcessor",
    "PllavaVideoProcessor",
    "VideoTextToTextPipeline",
    "check_model",
    "load_model",
    "lora_config",
    "model_path",
    "quantization_config",
    "set_alpha",
]
