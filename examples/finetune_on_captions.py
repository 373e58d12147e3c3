"""`python finetune_on_captions.py FOLDER`: fine-tunes nano on the clips in FOLDER/captions.csv (`video,caption`)."""

import sys
from pathlib import Path

from datasets import load_dataset
from peft import get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

import pllava
from pllava.train import PickleFreeMixin, VideoChatCollator

folder = Path(sys.argv[1])
model = AutoModelForImageTextToText.from_pretrained(pllava.NANO)  # or a converted checkpoint: see the README
processor = AutoProcessor.from_pretrained(pllava.NANO)


def to_conversation(row):
    question = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Describe the video."}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": row["caption"]}]}
    return {"messages": [question, answer], "videos": [str(folder / row["video"])]}


class CaptionTrainer(PickleFreeMixin, Trainer):
    """Saves and pushes without pickles."""


trainer = CaptionTrainer(
    model=get_peft_model(model, pllava.lora_config()),
    args=TrainingArguments(
        output_dir="my-captioner",
        num_train_epochs=3,
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        logging_steps=1,
        remove_unused_columns=False,
        report_to="none",
    ),
    train_dataset=load_dataset("csv", data_files=str(folder / "captions.csv"), split="train").map(to_conversation),
    data_collator=VideoChatCollator(processor),
    processing_class=processor,
)
trainer.train()
trainer.save_model()
