"""
A training run for tests that need separate processes: `training_run.py OPTIONS.json`. Each process writes the ids and
the loss of each step to `OUTPUT_DIR/steps-RANK.jsonl`, and kills itself in the step `kill_in_step` of the options.
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
    """Make accelerate accept FSDP without a GPU: torch can shard on the CPU, over gloo."""
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

    def logged_step(model, inputs, num_items_in_batch=None):
        if trainer.state.global_step == options.get("kill_in_step"):
            os.kill(os.getpid(), signal.SIGKILL)
        ids = list(inputs["id"])
        loss = step(model, inputs, num_items_in_batch)
        with log.open("a") as lines:
            lines.write(json.dumps({"step": trainer.state.global_step, "ids": ids, "loss": loss.item()}) + "\n")
        return loss

    trainer.training_step = logged_step
    trainer.train(resume_from_checkpoint=options.get("resume"))
    trainer.save_model()
    (log.parent / f"log-{args.process_index}.json").write_text(json.dumps(trainer.state.log_history))
    (log.parent / "distributed").write_text(trainer.accelerator.distributed_type)


if __name__ == "__main__":
    allow_fsdp_on_the_cpu()
    main(json.loads(Path(sys.argv[1]).read_text()))
