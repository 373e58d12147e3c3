"""
The command line for supervised fine-tuning:
`accelerate launch -m pllava.train --config train/recipes/pllava-7b.yaml [--any_option value]`.
`pllava.train.dpo` runs the same on preferences.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, IterableDataset
from transformers import EarlyStoppingCallback
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled
from trl import DPOConfig, SFTConfig

from .. import load_model, lora_config, model_path, quantization_config
from ..data.mixture import load_sources
from ..data.sources import load_source, read_sources
from ..loading import load_processor
from .arguments import EvaluationArguments, TrainingParser, check_evaluation
from .refused_options import check_options
from .saving import check_output_dir, exit_if_disk_is_full
from .trainer import build_trainer

if TYPE_CHECKING:
    from ..eval import Benchmark, Sample


def main(config_class: type[SFTConfig] | type[DPOConfig] = SFTConfig) -> None:
    """Parse `sys.argv`, train, save, and push to the Hub if asked to."""
    parser = TrainingParser(config_class)
    try:
        model_args, data_args, eval_args, args = parser.parse_args_and_config()
        if not data_args.datasets:
            parser.error("name the training data: --datasets, or `datasets` in the recipe")
        if model_args.model_name_or_path is None and model_args.adapter_name_or_path is None:
            parser.error("name the model to start from: --model, or `model` in the recipe")
        resume = args.resume_from_checkpoint
        resume = {"true": True, "false": None}.get(str(resume).lower(), resume)
        check_options(args)
        check_evaluation(eval_args, args)
        check_output_dir(Path(args.output_dir), resume)
        sources = read_sources(data_args.datasets, data_args.data_dir)
        with args.main_process_first(local=False):
            rows = load_sources(sources, data_args.stopping_strategy)
            eval_rows = load_eval_rows(eval_args.eval_datasets, data_args.data_dir)
        questions = read_questions(eval_args)
    except ValueError as error:
        parser.error(str(error))
    if args.max_steps < 0 and rows.length is None:
        parser.error("the length of these data is not known before they are read: set --max_steps")
    name = model_args.model_name_or_path and model_path(model_args.model_name_or_path)
    bits = 4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else None
    adapter = model_args.adapter_name_or_path
    model = load_model(
        name,
        adapter,
        alpha=model_args.lora_alpha if adapter else None,
        is_trainable=True,
        # With sharded weights no process has a whole model to check
        check=not (is_deepspeed_zero3_enabled() or is_fsdp_enabled()),
        dtype=model_args.dtype,
        revision=model_args.model_revision,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization_config(bits) if bits else None,
        device_map={"": args.device} if bits else None,
    )
    peft_config = lora_config(
        model_args.lora_r, model_args.lora_alpha, model_args.lora_dropout, "|".join(model_args.lora_target_modules)
    )
    patience = eval_args.early_stopping_patience
    trainer = build_trainer(
        model,
        load_processor(model),
        rows,
        args,
        peft_config=peft_config if model_args.use_peft and adapter is None else None,
        sampling=data_args.sampling,
        shuffle_buffer_size=data_args.shuffle_buffer_size,
        max_unreadable=data_args.max_unreadable,
        feature_cache=data_args.feature_cache,
        feature_cache_size=data_args.feature_cache_size,
        sources=sources,
        base_model=model_args.base_model,
        eval_dataset=eval_rows,
        callbacks=None if patience is None else [EarlyStoppingCallback(patience)],
    )
    if questions:
        from .predictions_callback import PredictionsCallback

        trainer.add_callback(PredictionsCallback(trainer, *questions, eval_args.prediction_steps))
    with exit_if_disk_is_full(args.output_dir):
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_state()
        if not args.push_to_hub:
            trainer.save_model()
    trainer.accelerator.print(trainer.loader.skipped.summary())
    trainer.accelerator.print(trainer.throughput.summary())
    if args.push_to_hub:
        with exit_if_disk_is_full(args.output_dir):
            commit = trainer.push_to_hub()  # saves the model before
        if commit is not None:
            print(f"Pushed to {commit.repo_url}")


def load_eval_rows(
    entries: list[str], data_dir: str | None
) -> Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None:
    """Return the rows as `Trainer` takes them: one dataset by itself, several by their names."""
    loaded = {source.title: load_source(source) for source in read_sources(entries, data_dir)}
    return loaded if len(loaded) > 1 else next(iter(loaded.values()), None)


def read_questions(eval_args: EvaluationArguments) -> "tuple[Benchmark, list[Sample]] | None":
    """Return the benchmark and the questions for a table of predictions, evenly spaced over the benchmark."""
    if not eval_args.prediction_benchmark:
        return None
    try:
        from ..eval import load_benchmark, load_prompts, read_samples
    except ModuleNotFoundError as error:
        raise ValueError(f"--prediction_benchmark needs {error.name}: pip install 'pllava[eval]'") from error
    benchmark = load_benchmark(eval_args.prediction_benchmark, load_prompts())
    samples = read_samples(benchmark, eval_args.prediction_data)
    count = min(eval_args.num_predictions, len(samples))
    return benchmark, [samples[index * len(samples) // count] for index in range(count)]


if __name__ == "__main__":
    main()
