"""
`accelerate launch -m pllava.train --config train/recipes/pllava-7b.yaml [--any_option value]`: fine-tunes a PLLaVA.
`accelerate launch -m pllava.train.dpo` does so on preferences.
"""

import sys
from dataclasses import dataclass, field

from accelerate import PartialState
from transformers import AutoProcessor
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled
from trl import DPOConfig, ModelConfig, SFTConfig, TrlParser

from .. import load_model, lora_config, model_path, quantization_config
from .data import find_file, read_sources
from .mixture import load_sources
from .trainer import build_trainer


@dataclass
class ModelArguments(ModelConfig):
    """TRL's model options, with the paper's adapter for a default."""

    adapter_name_or_path: str | None = field(
        default=None, metadata={"help": "An adapter to train on, in place of a new one."}
    )
    use_peft: bool = field(
        default=True, metadata={"help": "Train LoRA and the projector; else the whole model, the vision tower, too."}
    )
    lora_r: int = field(default=128, metadata={"help": "LoRA's rank."})
    lora_alpha: int = field(
        default=32, metadata={"help": "LoRA's strength in training; it can be set anew afterwards."}
    )
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "v_proj"], metadata={"help": "Linear layers of the text model."}
    )


@dataclass
class DataArguments:
    """What is trained on."""

    datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Files, folders or Hub ids, `.yaml` lists of these; in a recipe also with their options."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "The folder that relative paths start from."})
    stopping_strategy: str = field(
        default="all_exhausted_without_replacement",
        metadata={"help": "When an epoch of a mixture ends, as in `datasets.interleave_datasets`."},
    )
    shuffle_buffer_size: int = field(
        default=4000, metadata={"help": "Rows of Parquet or WebDataset files that are shuffled together."}
    )
    sampling: str = field(default="random", metadata={"help": "Frames of a clip: random, uniform, middle or start."})
    max_unreadable: float = field(
        default=0.2, metadata={"help": "The run stops if a larger share of the examples cannot be read."}
    )
    feature_cache: str | None = field(
        default=None, metadata={"help": "Directory that keeps the vision tower's features of each clip."}
    )


def main(config_class: type[SFTConfig] | type[DPOConfig] = SFTConfig) -> None:
    """Reads the options, trains, saves, and pushes if asked to."""
    argv = sys.argv[1:]
    if "--config" in argv[:-1]:
        place = argv.index("--config") + 1
        argv[place] = str(find_file(argv[place]))
    parser = TrlParser((ModelArguments, DataArguments, config_class))
    model_args, data_args, args = parser.parse_args_and_config(argv)
    if not data_args.datasets:
        parser.error("name what to train on: --datasets, or `datasets` in the recipe")
    if model_args.model_name_or_path is None:
        parser.error("name the model to start from: --model_name_or_path")

    try:
        sources = read_sources(data_args.datasets, data_args.data_dir)
        with PartialState().main_process_first():
            rows = load_sources(sources, data_args.stopping_strategy)
    except ValueError as error:
        parser.error(str(error))
    if args.max_steps < 0 and rows.length is None:
        parser.error("the length of these data is not known before they were read: set --max_steps")
    name = model_path(model_args.model_name_or_path)
    bits = 4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else None
    whole = not (is_deepspeed_zero3_enabled() or is_fsdp_enabled())  # else each process has a part of the weights
    model = load_model(
        name,
        model_args.adapter_name_or_path,
        alpha=model_args.lora_alpha if model_args.adapter_name_or_path else None,
        is_trainable=True,
        check=whole,
        dtype=model_args.dtype,
        revision=model_args.model_revision,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization_config(bits) if bits else None,
        device_map={"": PartialState().device} if bits else None,
    )
    new_adapter = model_args.use_peft and model_args.adapter_name_or_path is None
    trainer = build_trainer(
        model,
        AutoProcessor.from_pretrained(name, revision=model_args.model_revision),
        rows,
        args,
        peft_config=lora_config(
            model_args.lora_r,
            model_args.lora_alpha,
            model_args.lora_dropout,
            "|".join(model_args.lora_target_modules),
        )
        if new_adapter
        else None,
        sampling=data_args.sampling,
        shuffle_buffer_size=data_args.shuffle_buffer_size,
        max_unreadable=data_args.max_unreadable,
        feature_cache=data_args.feature_cache,
        sources=sources,
    )
    resume = args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if str(resume).lower() == "true" else resume)
    trainer.save_model()
    trainer.save_state()
    trainer.accelerator.print(trainer.loader.skipped.summary())
    if args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
