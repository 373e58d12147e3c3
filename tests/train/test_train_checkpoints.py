"""Checkpoints of training: where they load, how runs resume from them, and how runs are kept apart."""

import json

import pytest
import torch
from bare_environment import run_bare
from datasets import Dataset
from safetensors.torch import load_file
from train_examples import conversation, sft_config
from transformers import (
    AutoModelForImageTextToText,
)

from pllava import load_model, lora_config
from pllava.train import build_trainer

pytest_plugins = ["train_examples"]


ELSEWHERE = """
import sys
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

adapter, base, clip = sys.argv[1:]
processor = AutoProcessor.from_pretrained(adapter, trust_remote_code=True)
chat = [{"role": "user", "content": [{"type": "video", "path": clip}, {"type": "text", "text": "What is it?"}]}]
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
wrapped = AutoModelForImageTextToText.from_pretrained(base, trust_remote_code=True)
models = [AutoPeftModelForCausalLM.from_pretrained(adapter, trust_remote_code=True)]
models.append(PeftModel.from_pretrained(wrapped, adapter))
for model in models:
    output = model.eval().generate(**inputs, max_new_tokens=8, do_sample=False)
    print("answer:", processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def test_checkpoint_loads_without_pllava_installed(processor, checkpoint, clip, tmp_path):
    rows = [{"messages": conversation(("What is it?", "red circle"), media=["video"]), "videos": [clip]}] * 4
    args = sft_config(tmp_path / "out", max_steps=40, save_strategy="steps", save_steps=40)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    adapter = lora_config(r=16, lora_alpha=32, lora_dropout=0.0)
    build_trainer(model, processor, Dataset.from_list(rows), args, adapter, sampling="uniform").train()
    saved = tmp_path / "out" / "checkpoint-40"
    files = {file.name for file in saved.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "processor_config.json"} <= files
    assert {"processing_pllava.py", "video_processing_pllava.py", "training_args.json"} <= files
    assert not files & {"training_args.bin", "model.safetensors", "adapter_model.bin"}
    card = (saved / "README.md").read_text()
    assert "| steps | 40 of 40," in card and "| alpha in training | 32 |" in card and "drawn uniform" in card
    result = run_bare(
        ELSEWHERE, saved, checkpoint, clip, packages=("peft",), HF_MODULES_CACHE=str(tmp_path / "modules")
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert sum(line.startswith("answer: red circle") for line in result.stdout.splitlines()) == 2, result.stdout
    assert load_model(adapter=saved).active_peft_config.r == 16


def test_saved_adapter_can_be_trained_further(processor, checkpoint, four_clips, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    options = {"max_steps": 25, "per_device_train_batch_size": 4}
    first = build_trainer(model, processor, four_clips, sft_config(tmp_path / "a", **options), lora_config(r=8))
    first.train()
    first.save_model()
    model = load_model(adapter=tmp_path / "a", is_trainable=True)
    again = build_trainer(model, processor, four_clips, sft_config(tmp_path / "b", **options))
    trained = {name for name, weight in again.model.named_parameters() if weight.requires_grad}
    assert trained == {name for name, weight in first.model.named_parameters() if weight.requires_grad}
    again.train()
    losses = [[e["loss"] for e in trainer.state.log_history if "loss" in e] for trainer in (first, again)]
    assert losses[1][0] < 0.7 * losses[0][0] and losses[1][-1] < losses[1][0]


def resumable(processor, checkpoint, rows, output, **options):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    args = sft_config(output, max_steps=4, save_strategy="steps", save_steps=2, **options)
    return build_trainer(model, processor, rows, args, lora_config(r=4))


def test_incomplete_checkpoint_is_ignored_when_resuming(processor, checkpoint, four_clips, tmp_path):
    resumable(processor, checkpoint, four_clips, tmp_path).train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": ')
    again = resumable(processor, checkpoint, four_clips, tmp_path)
    steps = []
    step = again.training_step
    again.training_step = lambda *args: steps.append(again.state.global_step) or step(*args)
    again.train(resume_from_checkpoint=True)
    assert steps == [2, 3]


def test_resuming_without_a_usable_checkpoint_is_an_error(processor, checkpoint, four_clips, tmp_path):
    trainer = resumable(processor, checkpoint, four_clips, tmp_path)
    with pytest.raises(ValueError, match="has no checkpoint to resume from"):
        trainer.train(resume_from_checkpoint=True)
    trainer.train()
    file = tmp_path / "checkpoint-4" / "data_state_0.json"
    state = json.loads(file.read_text())  # with the same keys as in checkpoints of older versions
    assert set(state) == {"world_size", "step", "examples", "loader", "num_tokens"}
    assert set(state["loader"]) == {"place", "skipped"}
    cursor = {"epoch", "block", "offset", "position", "rows", "done", "by_shards"}
    assert set(state["loader"]["place"]) == cursor
    file.write_text(json.dumps({**state, "world_size": 2}))
    with pytest.raises(ValueError, match="saved on other machines. Copy there: data_state_1.json"):
        resumable(processor, checkpoint, four_clips, tmp_path).train(resume_from_checkpoint=True)
    file.unlink()
    with pytest.raises(ValueError, match="has no data_state_0.json: it was saved by another trainer"):
        resumable(processor, checkpoint, four_clips, tmp_path).train(resume_from_checkpoint=True)


def test_finished_run_that_is_resumed_only_saves(processor, checkpoint, four_clips, tmp_path, capsys):
    resumable(processor, checkpoint, four_clips, tmp_path).train()
    again = resumable(processor, checkpoint, four_clips, tmp_path)
    again.train(resume_from_checkpoint=True)
    assert f"Resuming from {tmp_path / 'checkpoint-4'}: step 4 of 4" in capsys.readouterr().out
    assert again.state.global_step == 4 and "train_loss" not in again.state.log_history[-1]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    again.save_model()
    saved, left = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "checkpoint-4"))
    assert all(torch.equal(value, left[name]) for name, value in saved.items())


def test_run_refuses_the_checkpoints_of_another(processor, checkpoint, four_clips, tmp_path):
    resumable(processor, checkpoint, four_clips, tmp_path).train()
    (tmp_path / "checkpoint-best").mkdir()  # not a checkpoint of this trainer
    again = resumable(processor, checkpoint, four_clips, tmp_path)
    with pytest.raises(ValueError, match="last of them checkpoint-4: resume that run .*resume_from_checkpoint true"):
        again.train()
    other = resumable(processor, checkpoint, four_clips, tmp_path / "other")
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match="has the checkpoints of another run"):
        again.train(resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-4"))
    assert again.state.global_step == 0
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_run_refuses_to_overwrite_the_weights_of_another(processor, checkpoint, four_clips, tmp_path):
    args = sft_config(tmp_path, max_steps=1)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    trainer = build_trainer(model, processor, four_clips, args, lora_config(r=4))
    trainer.train()
    trainer.save_model()
    trainer.train()  # the same run, still
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="has the weights of another run, adapter_model.safetensors: remove them"):
        build_trainer(model, processor, four_clips, args, lora_config(r=4)).train()


def test_progress_bar_shows_examples_and_tokens_and_resumes(processor, checkpoint, four_clips, tmp_path, capsys):
    resumable(processor, checkpoint, four_clips, tmp_path).train()
    shown = capsys.readouterr().err
    assert " 4/4 [" in shown and "examples=8, tokens=" in shown and "tokens/s=" in shown
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    resumable(processor, checkpoint, four_clips, tmp_path).train(resume_from_checkpoint=True)
    shown = capsys.readouterr().err
    assert " 2/4 [00:00<?, ?it/s" in shown and " 4/4 [" in shown
