"""The collator and the trainer: the real SFTTrainer on real clips."""

import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig, SFTConfig
from video_files import moving_frames, white_png, write_video

from pllava import NANO, load_model, lora_config
from pllava.train import PreferenceCollator, VideoChatCollator, build_trainer
from pllava.train.loader.skipped import SkippedExamples, read_skipped
from pllava.train.predictions_callback import PredictionsCallback


@pytest.fixture
def clip(clips):
    return str(clips[0])


def conversation(*turns, media=()):
    messages = []
    for question, answer in turns:
        content = [*({"type": kind} for kind in media), {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        media = ()
    return messages


def test_labels_are_the_assistants_words_and_end_tokens(processor, clip):
    turns = [("Say USER: or ASSISTANT: to me?", "red circle"), ("And now?", "it leaves")]
    example = {"messages": conversation(*turns, media=["video"]), "videos": [clip]}
    text_only = {"messages": conversation(("How many?", "three"))}
    batch = VideoChatCollator(processor)([example, text_only])
    learned = [row[row != -100] for row in batch["labels"]]
    assert processor.tokenizer.decode(learned[0]) == "red circle</s>it leaves</s>"
    assert processor.tokenizer.decode(learned[1]) == "three</s>"
    assert batch["pixel_values_videos"].shape == (1, 4, 3, 48, 48)
    assert (batch["input_ids"] == processor.video_token_id).sum() == processor.num_visual_tokens
    assert batch["labels"][batch["attention_mask"] == 0].eq(-100).all()
    assert batch["attention_mask"][1, -1] == 0  # padded on the right


def test_random_sampling_is_random_and_uniform_is_not(processor, clip):
    example = {"messages": conversation(("What?", "red"), media=["video"]), "videos": [clip]}
    random, uniform = VideoChatCollator(processor), VideoChatCollator(processor, sampling="uniform")
    assert not torch.equal(random([example])["pixel_values_videos"], random([example])["pixel_values_videos"])
    assert torch.equal(uniform([example])["pixel_values_videos"], uniform([example])["pixel_values_videos"])


def test_a_part_without_a_source_is_an_error(processor, clip):
    example = {"messages": conversation(("What?", "red"), media=["video", "video"]), "videos": [clip]}
    with pytest.raises(ValueError, match="more video parts than the example has videos"):
        VideoChatCollator(processor).encode(example)


# --- what does not fit or cannot be read -----------------------------------------------------------------------------


def test_a_long_conversation_loses_its_last_turns(processor, clip):
    turns = [("What is it?", "red circle"), ("And now?", "it leaves"), ("Why?", "red " * 8 + "red")]
    example = {"messages": conversation(*turns, media=["video"]), "videos": [clip]}
    whole = VideoChatCollator(processor).encode(example)
    for limit in range(processor.num_visual_tokens + 1, len(whole["input_ids"]) + 1):
        collator = VideoChatCollator(processor, max_length=limit)
        batch = collator([example])
        answers = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100]).split("</s>")[:-1]
        assert answers == [answer.strip() for _, answer in turns][: len(answers)]
        assert batch["input_ids"].shape[1] <= limit
        visual = (batch["input_ids"] == processor.video_token_id).sum()
        if answers:
            assert visual == processor.num_visual_tokens and collator.skipped.lost_turns == 3 - len(answers)
        else:
            assert collator.skipped.too_long == 1 and not visual and "pixel_values_videos" not in batch
    assert len(answers) == 3


def test_a_video_of_a_lost_turn_is_not_passed(processor, clips):
    messages = conversation(("What?", "red"), media=["video"]) + conversation(("And this?", "blue"), media=["video"])
    example = {"messages": messages, "videos": [str(clips[0]), str(clips[1])]}
    batch = VideoChatCollator(processor, max_length=2 * processor.num_visual_tokens)([example])
    assert batch["pixel_values_videos"].shape[0] == 1
    assert VideoChatCollator(processor)([example])["pixel_values_videos"].shape[0] == 2


def test_a_limit_that_leaves_no_text_is_an_error(processor):
    with pytest.raises(ValueError, match="includes the 36 tokens of a video"):
        VideoChatCollator(processor, max_length=36)


CORRUPT = {
    "truncated, index in front": lambda whole: whole[: len(whole) * 2 // 3],
    "a picture of 768 MB": lambda whole: white_png(16000, 16000),
    "no video": lambda whole: b"These are words. " * 50,
    "missing": None,
}


@pytest.fixture
def corrupt_set(tmp_path):
    """40 rows of which 4 cannot be read, each for a reason of its own; and the ids of these."""
    whole = write_video(
        tmp_path / "whole.mp4", moving_frames(40), fps=10, container_options={"movflags": "faststart"}, g=5
    )
    rows, bad = [], []
    for n in range(40):
        video = "whole.mp4"
        if n % 10 == 3:
            change = list(CORRUPT.values())[n // 10]
            video = f"bad-{n}.mp4"
            if change is not None:
                (tmp_path / video).write_bytes(change(whole.read_bytes()))
            bad.append(str(n))
        rows.append({"messages": conversation(("What?", "red"), media=["video"]), "videos": [str(tmp_path / video)]})
        rows[-1] |= {"id": str(n), "source": "mine"}
    return rows, bad


def sft_config(output, **options):
    defaults = {"max_steps": 8, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1}
    fixed = {"report_to": "none", "use_cpu": True, "bf16": False, "warmup_steps": 0, "save_strategy": "no"}
    return SFTConfig(str(output), **{**defaults, **fixed, **options})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_reports_exactly_what_it_could_not_read(processor, checkpoint, corrupt_set, tmp_path, workers):
    rows, bad = corrupt_set
    args = sft_config(tmp_path / "out", max_steps=-1, num_train_epochs=2, dataloader_num_workers=workers)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    trainer = build_trainer(model, processor, Dataset.from_list(rows), args, lora_config(r=4))
    trained = []
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, *rest: trained.extend(inputs["id"]) or step(model, inputs, *rest)
    trainer.train()
    skipped = read_skipped(tmp_path / "out" / "_skipped.jsonl")
    assert sorted((row.id for row in skipped), key=int) == bad and {row.reason for row in skipped} == {"unreadable"}
    assert all(row.media and row.error and row.source == "mine" for row in skipped)
    assert set(trained) == {row["id"] for row in rows} - set(bad) and len(trained) == 80
    assert trainer.state.log_history[-2]["skipped/unreadable"] >= 8
    assert "4 examples were skipped, 4 unreadable and 0 too long" in trainer.loader.skipped.summary()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_plain_trainer_takes_the_collator(processor, checkpoint, corrupt_set, tmp_path, batch_size):
    rows, bad = corrupt_set
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    model.model.vision_tower.requires_grad_(False)
    file = tmp_path / "_skipped.jsonl"
    args = TrainingArguments(
        str(tmp_path / "out"),
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        dataloader_num_workers=2,
        logging_steps=1,
        save_strategy="no",
        learning_rate=1e-3,
    )
    collator = VideoChatCollator(processor, skipped=SkippedExamples(file))
    trainer = Trainer(model, args, train_dataset=Dataset.from_list(rows), data_collator=collator)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 40 // batch_size and all(torch.tensor(losses).isfinite())
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert sorted((row.id for row in read_skipped(file)), key=int) == bad


def test_too_much_that_cannot_be_read_stops_the_run(processor, checkpoint, corrupt_set, tmp_path):
    rows, _ = corrupt_set
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    rows = Dataset.from_list(
        [{**row, "videos": ["/nowhere/at/all.mp4"]} if n % 3 else row for n, row in enumerate(rows)]
    )
    trainer = build_trainer(model, processor, rows, sft_config(tmp_path / "out", max_steps=40), lora_config(r=4))
    with pytest.raises(RuntimeError, match=r"more than `max_unreadable`=0.2 allows.*nowhere.*media folder"):
        trainer.train()


def test_a_run_that_fits_nothing_stops(processor, checkpoint, clip, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    rows = Dataset.from_list(
        [{"messages": conversation(("What?", "red " * 99), media=["video"]), "videos": [clip]}] * 30
    )
    trainer = build_trainer(model, processor, rows, sft_config(tmp_path / "out", max_length=60), lora_config(r=4))
    with pytest.raises(RuntimeError, match="All 20 examples are too long.*Raise `max_length`"):
        trainer.train()


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def four_clips(clips, tmp_path):
    """Four real clips, each with a word of its own for an answer."""
    fourth = write_video(tmp_path / "fourth.mp4", moving_frames(25, seed=9), fps=10)
    answers = ["red", "white", "left", "three"]
    return Dataset.from_list(
        [
            {"messages": conversation(("What is it?", answer), media=["video"]), "videos": [str(clip)]}
            for clip, answer in zip([*clips, fourth], answers, strict=True)
        ]
    )


def test_four_clips_are_learned_by_heart(four_clips, tmp_path):
    """By nano, in its own words: a tower of random weights sees too little difference between the clips."""
    model = AutoModelForImageTextToText.from_pretrained(NANO)
    processor = AutoProcessor.from_pretrained(NANO)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = sft_config(tmp_path / "out", max_steps=60, per_device_train_batch_size=4, learning_rate=5e-3)
    adapter = lora_config(r=16, lora_alpha=32, lora_dropout=0.0)
    trainer = build_trainer(model, processor, four_clips, args, adapter, sampling="uniform")
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.05 < losses[0], losses

    trainer.save_model()
    base = AutoModelForImageTextToText.from_pretrained(NANO)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload().eval()
    after = loaded.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("q_proj" in n or "v_proj" in n or "multi_modal_projector" in n for n in changed), changed
    batch = VideoChatCollator(processor, sampling="uniform")(list(four_clips))
    with torch.no_grad():
        trained, merged = trainer.model.eval()(**batch).loss, loaded(**batch).loss
    torch.testing.assert_close(trained, merged, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_and_projector_get_gradients_and_nothing_else(processor, checkpoint, four_clips, tmp_path, checkpointing):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    args = sft_config(tmp_path / "out", max_steps=1, gradient_checkpointing=checkpointing)
    trainer = build_trainer(model, processor, four_clips, args, lora_config(r=4))
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)  # as long as it is 0, lora_A gets none
    trainer.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    gradients = {}
    clip_grad_norm = trainer._clip_grad_norm

    def note(model):
        gradients.update({name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
        gradients.update({name: grad.clone() for name, grad in gradients.items()})
        return clip_grad_norm(model)

    trainer._clip_grad_norm = note
    trainer.train()
    expected = {n for n, _ in trainer.model.named_parameters() if "lora_" in n or "projector.modules_to_save" in n}
    assert set(gradients) == expected and all(grad.abs().sum() > 0 for grad in gradients.values())
    layers = model.config.text_config.num_hidden_layers
    assert len(expected) == layers * 4 + 4  # A and B of q and v; two linear layers' weights and biases


def test_what_is_logged(processor, checkpoint, four_clips, tmp_path):
    rows = four_clips.add_column("source", ["one", "two", "one", "two"])
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    args = sft_config(tmp_path / "out", max_steps=2, per_device_train_batch_size=4, report_to="tensorboard")
    trainer = build_trainer(model, processor, rows, args, lora_config(r=4, lora_dropout=0.0), sampling="uniform")
    batch = VideoChatCollator(processor, sampling="uniform")
    with torch.no_grad():
        expected = {
            name: trainer.model.eval()(**batch([row for row in rows if row["source"] == name])).loss.item()
            for name in ("one", "two")
        }
    trainer.train()
    first = trainer.state.log_history[0]
    by_source = {name.removeprefix("loss/"): loss for name, loss in first.items() if name.startswith("loss/")}
    assert by_source == pytest.approx(expected, rel=1e-4)
    assert first["grad_norm"] ** 2 == pytest.approx(
        first["grad_norm/lora"] ** 2 + first["grad_norm/projector"] ** 2, rel=1e-4
    )
    assert 0 <= first["data_wait"] <= 1 and first["tokens_per_second"] > 0 and first["epoch"] == 1
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))


def test_the_cache_gives_the_features_of_the_tower(processor, checkpoint, four_clips, tmp_path):
    def losses(cache, tower_calls):
        model = AutoModelForImageTextToText.from_pretrained(checkpoint)
        model.model.vision_tower.register_forward_hook(lambda *args: tower_calls.append(1))
        args = sft_config(tmp_path / "out", max_steps=6, per_device_train_batch_size=2)
        trainer = build_trainer(
            model, processor, four_clips, args, lora_config(r=4, lora_dropout=0.0), feature_cache=cache
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    cache = str(tmp_path / "cache")
    first, second, calls, later_calls = [], [], [], []
    first, second = losses(cache, calls), losses(cache, later_calls)
    assert len(calls) == 2 and not later_calls  # in the first epoch of the first run
    assert first == second
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4
    assert not list((tmp_path / "cache").rglob("*.partial"))


# --- what is saved ---------------------------------------------------------------------------------------------------

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
assert "pllava" not in sys.modules
"""


def test_a_checkpoint_loads_elsewhere(processor, checkpoint, clip, tmp_path):
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
    assert "| steps | 40 of 40 |" in card and "alpha = 32 at rank 16" in card and "drawn uniform" in card
    command = [sys.executable, "-c", ELSEWHERE, str(saved), checkpoint, clip]
    result = subprocess.run(command, cwd=tmp_path, env=elsewhere(tmp_path), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert sum(line.startswith("answer: red circle") for line in result.stdout.splitlines()) == 2, result.stdout
    assert load_model(adapter=saved).active_peft_config.r == 16


def elsewhere(folder):
    """An environment in which `pllava` cannot be imported."""
    hidden = folder / "hidden"
    hidden.mkdir()
    (hidden / "pllava.py").write_text("raise ImportError('hidden')")
    return {**os.environ, "PYTHONPATH": str(hidden), "HF_MODULES_CACHE": str(folder / "modules")}


def test_a_saved_adapter_is_trained_on(processor, checkpoint, four_clips, tmp_path):
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


def test_an_unfinished_checkpoint_is_passed_over(processor, checkpoint, four_clips, tmp_path):
    resumable(processor, checkpoint, four_clips, tmp_path).train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": ')
    again = resumable(processor, checkpoint, four_clips, tmp_path)
    steps = []
    step = again.training_step
    again.training_step = lambda *args: steps.append(again.state.global_step) or step(*args)
    again.train(resume_from_checkpoint=True)
    assert steps == [2, 3]


def test_what_cannot_be_gone_on_from_is_an_error(processor, checkpoint, four_clips, tmp_path):
    trainer = resumable(processor, checkpoint, four_clips, tmp_path)
    with pytest.raises(ValueError, match="has no checkpoint to resume from"):
        trainer.train(resume_from_checkpoint=True)
    trainer.train()
    file = tmp_path / "checkpoint-4" / "data_state_0.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "world_size": 2}))
    with pytest.raises(ValueError, match="saved on other machines. Copy there: data_state_1.json"):
        resumable(processor, checkpoint, four_clips, tmp_path).train(resume_from_checkpoint=True)
    file.unlink()
    with pytest.raises(ValueError, match="has no data_state_0.json: it was saved by another trainer"):
        resumable(processor, checkpoint, four_clips, tmp_path).train(resume_from_checkpoint=True)


def test_resumed_at_its_end_a_run_only_saves(processor, checkpoint, four_clips, tmp_path, capsys):
    resumable(processor, checkpoint, four_clips, tmp_path).train()
    again = resumable(processor, checkpoint, four_clips, tmp_path)
    again.train(resume_from_checkpoint=True)
    assert f"Resuming from {tmp_path / 'checkpoint-4'}: step 4 of 4" in capsys.readouterr().out
    assert again.state.global_step == 4 and "train_loss" not in again.state.log_history[-1]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    again.save_model()
    saved, left = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "checkpoint-4"))
    assert all(torch.equal(value, left[name]) for name, value in saved.items())


def test_a_run_does_not_mix_with_another(processor, checkpoint, four_clips, tmp_path):
    resumable(processor, checkpoint, four_clips, tmp_path).train()
    (tmp_path / "checkpoint-best").mkdir()  # somebody else's, and no step
    again = resumable(processor, checkpoint, four_clips, tmp_path)
    with pytest.raises(ValueError, match="last of them checkpoint-4: resume that run .*resume_from_checkpoint true"):
        again.train()
    other = resumable(processor, checkpoint, four_clips, tmp_path / "other")
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match="has the checkpoints of another run"):
        again.train(resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-4"))
    assert again.state.global_step == 0
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_run_does_not_overwrite_what_another_saved(processor, checkpoint, four_clips, tmp_path):
    args = sft_config(tmp_path, max_steps=1)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    trainer = build_trainer(model, processor, four_clips, args, lora_config(r=4))
    trainer.train()
    trainer.save_model()
    trainer.train()  # the same run, still
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="has the weights of another run, adapter_model.safetensors: remove them"):
        build_trainer(model, processor, four_clips, args, lora_config(r=4)).train()


def test_the_bar_counts_examples_and_tokens_and_goes_on_where_it_was(
    processor, checkpoint, four_clips, tmp_path, capsys
):
    resumable(processor, checkpoint, four_clips, tmp_path).train()
    shown = capsys.readouterr().err
    assert " 4/4 [" in shown and "examples=8, tokens=" in shown and "tokens/s=" in shown
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    resumable(processor, checkpoint, four_clips, tmp_path).train(resume_from_checkpoint=True)
    shown = capsys.readouterr().err
    assert " 2/4 [00:00<?, ?it/s" in shown and " 4/4 [" in shown


# --- evaluation ------------------------------------------------------------------------------------------------------


class Steps(TrainerCallback):
    def __init__(self):
        self.evaluated = []

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.evaluated.append((state.global_step, metrics))


def test_evaluation_in_a_run(processor, checkpoint, four_clips, corrupt_set, tmp_path):
    """With losses that grow, the run ends early, at the checkpoint of the first evaluation."""
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(checkpoint), lora_config(r=4, lora_dropout=0.0))
    optimizer = torch.optim.SGD(
        [weight for weight in model.parameters() if weight.requires_grad], maximize=True, lr=1e-2
    )
    readable, unreadable = corrupt_set[0][0], corrupt_set[0][13]
    steps, shapes = Steps(), []

    def count_right(prediction):
        shapes.append(prediction.predictions.shape)
        return {"right": float((prediction.predictions.argmax(-1)[:, :-1] == prediction.label_ids[:, 1:]).sum())}

    args = sft_config(
        tmp_path / "out",
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        per_device_eval_batch_size=1,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
    )
    trainer = build_trainer(
        model,
        processor,
        four_clips,
        args,
        eval_dataset=Dataset.from_list([*four_clips, readable, unreadable]),
        callbacks=[steps, EarlyStoppingCallback(1)],
        optimizers=(optimizer, None),
        compute_metrics=count_right,
    )
    trainer.train()
    assert [step for step, _ in steps.evaluated] == [2, 4] and trainer.state.best_global_step == 2
    losses = [metrics["eval_loss"] for _, metrics in steps.evaluated]
    batch = VideoChatCollator(processor, sampling="uniform")
    with torch.no_grad():
        now = [trainer.model.eval()(**batch([row])).loss for row in [*four_clips, readable]]
    assert torch.stack(now).mean().item() == pytest.approx(losses[0], rel=1e-4) and losses[0] < losses[1]
    assert shapes[0][0] == 6 and shapes[0][2] == model.config.text_config.vocab_size
    assert all("eval_right" in metrics for _, metrics in steps.evaluated)
    (skipped,) = read_skipped(tmp_path / "out" / "_skipped.jsonl")
    assert skipped.media == unreadable["videos"]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluations_of_what_cannot_be_read_end_no_run_and_name_it_once(
    processor, checkpoint, four_clips, tmp_path, workers
):
    missing = [{**four_clips[0], "videos": [f"/nowhere/{n}.mp4"], "id": str(n)} for n in range(24)]
    args = sft_config(tmp_path / "out", max_steps=2, eval_strategy="steps", eval_steps=1)
    args.dataloader_num_workers = workers
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    eval_rows = Dataset.from_list(missing)
    build_trainer(model, processor, four_clips, args, lora_config(r=4), eval_dataset=eval_rows).train()
    lines = (tmp_path / "out" / "_skipped.jsonl").read_text().splitlines()
    assert sorted(int(json.loads(line)["id"]) for line in lines) == list(range(24))


def test_an_optimizer_without_the_trained_weights_is_refused(processor, checkpoint, four_clips, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    optimizer = torch.optim.SGD(model.model.language_model.parameters(), lr=1.0)
    args = sft_config(tmp_path / "out")
    with pytest.raises(ValueError, match="has none of the weights that are trained"):
        build_trainer(model, processor, four_clips, args, lora_config(r=4), optimizers=(optimizer, None))


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"completion_only_loss": True}, "completion_only_loss=True is not possible here: the assistant's words"),
        ({"packing": True}, "packing=True is not possible here: the collator"),
        ({"auto_find_batch_size": True}, "batches of one size"),
        ({"ignore_data_skip": True}, "ignore_data_skip=True is not possible here: a resumed run continues"),
        ({"dataset_kwargs": {"add_special_tokens": False}}, "dataset_kwargs=.* is not possible here"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last=True is not possible here: the loader's batches are"),
        ({"dataloader_persistent_workers": True, "dataloader_num_workers": 1}, "dataloader_persistent_workers=True"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config: split_batches=True is not possible"),
        ({"accelerator_config": {"dispatch_batches": True}}, "accelerator_config: dispatch_batches=True is not"),
        ({"save_strategy": "epoch"}, "save_strategy=epoch is not possible here"),
        ({"push_to_hub": True, "hub_strategy": "checkpoint"}, "hub_strategy=checkpoint uploads .* pickles"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_done_is_refused(processor, four_clips, tmp_path, options, message):
    args = sft_config(tmp_path, **{"save_strategy": "no", **options})
    with pytest.raises(ValueError, match=message):
        build_trainer(None, processor, four_clips, args)


@pytest.mark.parametrize("config_class", [SFTConfig, DPOConfig])
def test_options_are_as_they_were_after_a_trainer_was_built(processor, checkpoint, four_clips, tmp_path, config_class):
    args = config_class(str(tmp_path), max_steps=1, use_cpu=True, bf16=False, report_to="none")
    before = args.to_dict()
    for _ in range(2):
        model = AutoModelForImageTextToText.from_pretrained(checkpoint)
        build_trainer(model, processor, four_clips, args, lora_config(r=4))
        assert args.to_dict() == before


def test_predictions_need_to_know_when(processor, checkpoint, four_clips, tmp_path):
    args = sft_config(tmp_path, report_to="tensorboard")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    trainer = build_trainer(model, processor, four_clips, args, lora_config(r=4))
    with pytest.raises(ValueError, match="Nothing says when .* give `steps`, or set `eval_steps`"):
        PredictionsCallback(trainer, None, [])


@pytest.mark.parametrize("asked", [None, True])
def test_ddp_looks_for_unused_weights_on_request(processor, checkpoint, four_clips, tmp_path, asked):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    args = sft_config(tmp_path, ddp_find_unused_parameters=asked, assistant_only_loss=True)
    trainer = build_trainer(model, processor, four_clips, args, lora_config(r=4))
    assert trainer.args.ddp_find_unused_parameters is bool(asked)


# --- preferences -----------------------------------------------------------------------------------------------------


def test_preferences_are_learned(processor, checkpoint, four_clips, tmp_path):
    rows = [
        {
            "messages": row["messages"][:1],
            "videos": row["videos"],
            "chosen": row["messages"][1:],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "a blue one"}]}],
        }
        for row in four_clips
    ]
    batch = PreferenceCollator(processor)(rows[:2])
    answers = [
        processor.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert answers == ["red</s>", "white</s>", "a blue one</s>", "a blue one</s>"]
    assert batch["pixel_values_videos"].shape[0] == 4
    assert torch.equal(*batch["pixel_values_videos"].chunk(2))  # the same frames for both answers

    args = DPOConfig(
        str(tmp_path / "out"),
        max_steps=30,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        warmup_steps=0,
        logging_steps=1,
        save_steps=10,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    trainer = build_trainer(model, processor, Dataset.from_list(rows), args, lora_config(r=8, lora_dropout=0.0))
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3) and last["loss"] < 0.3
    assert last["rewards/margins"] > 1 and last["rewards/accuracies"] == 1
    assert (tmp_path / "out" / "checkpoint-30" / "data_state_0.json").exists()
