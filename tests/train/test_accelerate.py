"""A training run with each of the accelerate configs, on the CPU, with two processes if the config has several."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

import pllava
from pllava.nano.world.rendering import render

CONFIGS = sorted((Path(pllava.__file__).parent / "train" / "accelerate").glob("*.yaml"))
# Like `-m pllava.train`, with FSDP allowed on a CPU
SCRIPT = """
from training_run import allow_fsdp_on_the_cpu

from pllava.train.__main__ import main

allow_fsdp_on_the_cpu()
main()
"""
OPTIONS = """
--model_name_or_path nano --lora_r 8 --datasets world/questions.jsonl --per_device_train_batch_size 1 --max_steps 6
--eval_datasets world/questions.jsonl --eval_strategy steps --eval_steps 6 --logging_steps 1 --output_dir out
--bf16 false --report_to none
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # DeepSpeed compiles its optimizer in the first run
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_accelerate_config_trains(config, tmp_path):
    render(tmp_path / "world", 2, seed=4)
    # In some steps one process has a video and the other only text: neither may wait for the other's layers
    with (tmp_path / "world" / "questions.jsonl").open("a") as rows:
        rows.writelines(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(40))
    (tmp_path / "train.py").write_text(SCRIPT)
    with_deepspeed = config.stem.startswith("zero")
    on_cpu = {"DS_ACCELERATOR": "cpu"} if with_deepspeed else {"ACCELERATE_USE_CPU": "true"}
    options = (
        OPTIONS.split() + ["--ddp_backend", "gloo"] * with_deepspeed
    )  # or accelerate takes each process for the only one
    path = os.pathsep.join([str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **on_cpu, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    launch += ["--num_processes", "1" if config.stem == "single" else "2", "--mixed_precision", "no"]
    launch += ["--main_process_port", free_port()]
    nodes = [["--main_process_ip", "127.0.0.1", "--machine_rank", rank] for rank in "01"]
    runs = [
        subprocess.Popen([*launch, *node, "train.py", *options], cwd=tmp_path, env=environment)
        for node in (nodes if config.stem == "multi_node" else [[]])
    ]
    assert [run.wait() for run in runs] == [0] * len(runs)
    *steps, evaluation, _ = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert len(steps) == 6 and evaluation["eval_loss"] > 0
    for step in steps:
        assert step["loss"] > 0 and step["tokens_per_second"] > 0
        parts = step["grad_norm/lora"] ** 2 + step["grad_norm/projector"] ** 2
        assert step["grad_norm"] ** 2 == pytest.approx(parts, rel=1e-3)
    pllava.load_model(adapter=tmp_path / "out")
