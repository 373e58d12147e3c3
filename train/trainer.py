"""
TRL's SFTTrainer, set up for video: our collator, LoRA on the text model, the projector trained in full, the tower
frozen.
"""

from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import PreTrainedModel, ProcessorMixin
from trl import SFTConfig, SFTTrainer

from .collator import VideoChatCollator


def build_trainer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    train_dataset: Dataset | IterableDataset,
    args: SFTConfig,
    peft_config: LoraConfig | None = None,
    sampling: str = "random",
) -> SFTTrainer:
    """
    An `SFTTrainer` over conversations about videos and images.

    Args:
        train_dataset: Rows of `messages`, with `videos` and `images` (see [`VideoChatCollator`]), undecoded.
        args: Any `SFTConfig`; what the collator does is switched off in it.
        peft_config: The adapter to train (then the vision tower is frozen); without one the whole model is trained.
        sampling: How the collator draws frames, "random" or "uniform".
    """
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    args.remove_unused_columns = False
    if peft_config is not None:
        model.model.vision_tower.requires_grad_(False)
    return SFTTrainer(
        model=model,
        args=args,
        data_collator=VideoChatCollator(processor, sampling),
        train_dataset=train_dataset,
        processing_class=processor,
        peft_config=peft_config,
    )
