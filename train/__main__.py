"""
`accelerate launch -m pllava.train --config train/recipes/pllava-7b.yaml [--any_option value]`: fine-tunes a PLLaVA.
`accelerate launch -m pllava.train.dpo` does so on preferences.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from datasets import Dataset, IterableDataset
from transformers import AutoProcessor, EarlyStoppingCallback
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled
from trl import DPOConfig, SFTConfig, TrlParser

from .. import load_model, lora_config, model_path, quantization_config
from ..data.mixture import load_sources
from ..data.sources import find_file, load_source, read_sources
from .arguments import DataArguments, EvaluationArguments, ModelArguments, check_options
from .saving import check_output_dir, said_if_disk_is_full
from .trainer import build_trainer

if TYPE_CHECKING:
    from ..eval import Benchmark, Sample

TIMEOUT = 4 * 3600  # seconds; transformers' 1,800 end a run in which one process decodes or indexes for long


def main(config_class: type[SFTConfig] | type[DPOConfig] = SFTConfig) -> None:
    """Reads the options, trains, saves, and pushes if asked to."""
    parser = Parser((ModelArguments, DataArguments, EvaluationArguments, config_class))
    parser.set_defaults(ddp_timeout=TIMEOUT)
    argv = sys.argv[1:]
    try:
        if "--config" in argv[:-1]:
            place = argv.index("--config") + 1
            argv[place] = str(find_file(argv[place]))
        model_args, data_args, eval_args, args = parser.parse_args_and_config(argv)
        if not data_args.datasets:
            parser.error("name what to train on: --datasets, or `datasets` in the recipe")
        if model_args.model_name_or_path is None:
            parser.error("name the model to start from: --model_name_or_path")
        resume = args.resume_from_checkpoint
        resume = {"true": True, "false": None}.get(str(resume).lower(), resume)
        check_options(args)
        check_evaluation(eval_args, args)
        check_output_dir(Path(args.output_dir), resume)
        sources = read_sources(data_args.datasets, data_args.data_dir)
        with args.main_process_first(local=False):
            rows = load_sources(sources, data_args.stopping_strategy)
            eval_rows = load_eval_rows(eval_args.eval_datasets, data_args.data_dir)
        asked = read_questions(eval_args)
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
        device_map={"": args.device} if bits else None,
    )
    patience = eval_args.early_stopping_patience
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
        feature_cache_size=data_args.feature_cache_size,
        sources=sources,
        eval_dataset=eval_rows,
        callbacks=None if patience is None else [EarlyStoppingCallback(patience)],
    )
    if asked:
        from .predictions_callback import PredictionsCallback

        trainer.add_callback(PredictionsCallback(trainer, *asked, eval_args.prediction_steps))
    with said_if_disk_is_full(args.output_dir):
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
        trainer.save_state()
    trainer.accelerator.print(trainer.loader.skipped.summary())
    if args.push_to_hub:
        trainer.push_to_hub()


class Parser(TrlParser):
    """TRL's parser, with errors in one line: its usage text has some hundred options."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"Error: {' '.join(message.split())}\n")


def load_eval_rows(
    entries: list[str], data_dir: str | None
) -> Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None:
    """One data set as it is, several by their names, as `Trainer` evaluates them."""
    loaded = {source.title: load_source(source) for source in read_sources(entries, data_dir)}
    return loaded if len(loaded) > 1 else next(iter(loaded.values()), None)


def check_evaluation(eval_args: EvaluationArguments, args: SFTConfig | DPOConfig) -> None:
    """
    Raises:
        ValueError: if something is to be evaluated, but nothing says when, or on what.
    """
    evaluates = args.eval_strategy != "no"
    if evaluates != bool(eval_args.eval_datasets):
        raise ValueError("--eval_datasets and --eval_strategy steps belong together: on what, and when")
    if eval_args.early_stopping_patience is not None and not args.load_best_model_at_end:
        raise ValueError("--early_stopping_patience stops at the best model: set --load_best_model_at_end, too")
    if eval_args.prediction_benchmark and not (
        eval_args.prediction_data and (eval_args.prediction_steps or evaluates)
    ):
        raise ValueError("--prediction_benchmark needs --prediction_data, and --prediction_steps or --eval_strategy")


def read_questions(eval_args: EvaluationArguments) -> "tuple[Benchmark, list[Sample]] | None":
    """What is asked for a table of predictions; here and not above, since it needs what evaluation needs."""
    if not eval_args.prediction_benchmark:
        return None
    try:
        from ..eval import load_benchmark, load_prompts, read_samples
    except ModuleNotFoundError as error:
        raise ValueError(f"--prediction_benchmark needs {error.name}: pip install 'pllava[eval]'") from error
    benchmark = load_benchmark(eval_args.prediction_benchmark, load_prompts())
    samples = read_samples(benchmark, eval_args.prediction_data)
    count = min(eval_args.num_predictions, len(samples))
    return benchmark, [samples[place * len(samples) // count] for place in range(count)]  # from all over it


if __name__ == "__main__":
    main()
