"""
A training run in processes of its own, for the tests: `training_run.py OPTIONS.json`. Writes what each process did in
each step (ids, loss) to `OUTPUT_DIR/steps-RANK.jsonl`, and kills itself in the step that the options name.
"""

import json
import os
import signal
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig

from pllava import lora_config
from pllava.data.mixture import load_sources
from pllava.data.sources import read_sources
from pllava.train import build_trainer


def allow_fsdp_on_the_cpu() -> None:
    """accelerate shards on accelerators only; torch does so on the CPU as well, over gloo."""
    prepare = AcceleratorState.__init__

    def prepare_and_shard(self, *args, fsdp_plugin=None, **kwargs):
        prepare(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            AcceleratorState._shared_state["fsdp_plugin"] = fsdp_plugin
            AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = prepare_and_shard


def main(options: dict) -> None:
    args = SFTConfig(
        **{"use_cpu": True, "report_to": "none", "logging_steps": 1, "bf16": False, "disable_tqdm": True},
        **options["args"],
    )
    trainer = build_trainer(
        AutoModelForImageTextToText.from_pretrained(options["model"]),
        AutoProcessor.from_pretrained(options["model"]),
        load_sources(read_sources(options["datasets"])),
        args,
        peft_config=lora_config(r=4, lora_alpha=8, lora_dropout=options.get("dropout", 0.1)),
        shuffle_buffer_size=6,
        feature_cache=options.get("feature_cache"),
        sampling=options.get("sampling", "random"),
    )
    log = Path(args.output_dir) / f"steps-{args.process_index}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    step = trainer.training_step

    def noted_step(model, inputs, num_items_in_batch=None):
        if trainer.state.global_step == options.get("kill_in_step"):
            os.kill(os.getpid(), signal.SIGKILL)
        ids = list(inputs["id"])
        loss = step(model, inputs, num_items_in_batch)
        with log.open("a") as lines:
            lines.write(json.dumps({"step": trainer.state.global_step, "ids": ids, "loss": loss.item()}) + "\n")
        return loss

    trainer.training_step = noted_step
    trainer.train(resume_from_checkpoint=options.get("resume"))
    trainer.save_model()
    (log.parent / f"log-{args.process_index}.json").write_text(json.dumps(trainer.state.log_history))
    (log.parent / "distributed").write_text(trainer.accelerator.distributed_type)


if __name__ == "__main__":
    allow_fsdp_on_the_cpu()
    main(json.loads(Path(sys.argv[1]).read_text()))
