"""SFT and DPO on real clips: what is learned, logged, skipped, evaluated and refused."""

import json

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from train_examples import conversation, sft_config
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig, SFTConfig

from pllava import NANO, lora_config
from pllava.train import PreferenceCollator, VideoChatCollator, build_trainer
from pllava.train.callbacks import describe_waits
from pllava.train.loader.skipped import SkippedExamples, read_skipped
from pllava.train.predictions_callback import PredictionsCallback

pytest_plugins = ["train_examples"]


def test_training_overfits_four_clips(four_clips, tmp_path):
    """With nano: a vision tower with random weights hardly tells the clips apart."""
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


def test_logged_figures(processor, checkpoint, four_clips, tmp_path):
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


def test_a_model_is_trained_twice_in_one_program(processor, checkpoint, four_clips, tmp_path):
    """As in a notebook: the second trainer gets the model of the first, and other texts."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    for name, rows in (("first", four_clips), ("second", four_clips.map(with_longer_answer))):
        args = sft_config(tmp_path / name, max_steps=2)
        trainer = build_trainer(model, processor, rows.add_column("source", [name] * 4), args)
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(logged) == 2 and all(f"loss/{name}" in entry for entry in logged)


def with_longer_answer(row):
    *before, last = row["messages"]
    return {"messages": [*before, {**last, "content": [{"type": "text", "text": "It is a much longer answer."}]}]}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_model_gets_the_video_processors_pixels(processor, checkpoint, four_clips, tmp_path, workers):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    args = sft_config(tmp_path / "out", max_steps=4, per_device_train_batch_size=1, dataloader_num_workers=workers)
    trainer = build_trainer(model, processor, four_clips, args, lora_config(r=4), sampling="uniform")
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values_videos"]), with_kwargs=True
    )
    trainer.train()
    clips = [clip for videos in four_clips["videos"] for clip in videos]
    expected = processor.video_processor(clips, return_tensors="pt")["pixel_values_videos"]
    assert len(seen) == 4
    assert all(sum(torch.equal(pixels[0], other) for pixels in seen) == 1 for other in expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA has pinned memory")
def test_examples_are_pinned_for_a_gpu(processor, checkpoint, four_clips, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    args = sft_config(tmp_path / "out", use_cpu=False, dataloader_num_workers=1)
    trainer = build_trainer(model, processor, four_clips, args, lora_config(r=4))
    batch = next(iter(trainer.get_train_dataloader()))
    assert all(video.is_pinned() and video.dtype == torch.uint8 for video in batch["pixel_values_videos"])


@pytest.mark.parametrize(
    ("waited", "workers", "cores", "expected"),
    [
        (2, 2, 8, "The model waited for data in 2% of 100 s."),
        (35, 2, 8, "The model waited for data in 35% of 100 s: raise `dataloader_num_workers` from 2 to 4."),
        (30, 0, 8, "The model waited for data in 30% of 100 s: raise `dataloader_num_workers` from 0 to 1."),
        (75, 2, 4, "from 2 to 4, the number of cores. Decoding in time would take 8 cores: make copies of the clips"),
        (75, 4, 4, "in 75% of 100 s. Decoding in time would take 16 cores: make copies of the clips at the model's"),
        (100, 1, 4, "from 1 to 4, the number of cores. Decoding in time would take 1000 cores"),
    ],
)
def test_waits_lead_to_advice_on_workers(waited, workers, cores, expected):
    assert expected in describe_waits(waited, 100, workers, cores)


def test_cached_features_give_the_same_losses(processor, checkpoint, four_clips, tmp_path):
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


# --- unreadable and too long examples --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_run_lists_exactly_the_unreadable_examples(processor, checkpoint, corrupt_set, tmp_path, workers):
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


def test_too_many_unreadable_examples_stop_the_run(processor, checkpoint, corrupt_set, tmp_path):
    rows, _ = corrupt_set
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    rows = Dataset.from_list(
        [{**row, "videos": ["/nowhere/at/all.mp4"]} if n % 3 else row for n, row in enumerate(rows)]
    )
    trainer = build_trainer(model, processor, rows, sft_config(tmp_path / "out", max_steps=40), lora_config(r=4))
    with pytest.raises(RuntimeError, match=r"more than `max_unreadable`=0.2 allows.*nowhere.*media folder"):
        trainer.train()


def test_only_too_long_examples_stop_the_run(processor, checkpoint, clip, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    rows = Dataset.from_list(
        [{"messages": conversation(("What?", "red " * 99), media=["video"]), "videos": [clip]}] * 30
    )
    trainer = build_trainer(model, processor, rows, sft_config(tmp_path / "out", max_length=60), lora_config(r=4))
    with pytest.raises(RuntimeError, match="All 20 examples are too long.*Raise `max_length`"):
        trainer.train()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_transformers_trainer_accepts_the_collator(processor, checkpoint, corrupt_set, tmp_path, batch_size):
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


# --- evaluation ------------------------------------------------------------------------------------------------------


class Steps(TrainerCallback):
    def __init__(self):
        self.evaluated = []

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.evaluated.append((state.global_step, metrics))


def test_evaluation_and_early_stopping(processor, checkpoint, four_clips, corrupt_set, tmp_path):
    """The loss is maximized: the run stops early, and keeps the checkpoint of the first evaluation."""
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
def test_unreadable_evaluation_examples_are_listed_once_and_stop_nothing(
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
    with pytest.raises(ValueError, match="has none of the trained weights"):
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
def test_unsupported_options_are_refused(processor, four_clips, tmp_path, options, message):
    args = sft_config(tmp_path, **{"save_strategy": "no", **options})
    with pytest.raises(ValueError, match=message):
        build_trainer(None, processor, four_clips, args)


@pytest.mark.parametrize("config_class", [SFTConfig, DPOConfig])
def test_build_trainer_leaves_the_arguments_unchanged(processor, checkpoint, four_clips, tmp_path, config_class):
    args = config_class(str(tmp_path), max_steps=1, use_cpu=True, bf16=False, report_to="none")
    before = args.to_dict()
    for _ in range(2):
        model = AutoModelForImageTextToText.from_pretrained(checkpoint)
        build_trainer(model, processor, four_clips, args, lora_config(r=4))
        assert args.to_dict() == before


def test_predictions_callback_needs_steps(processor, checkpoint, four_clips, tmp_path):
    args = sft_config(tmp_path, report_to="tensorboard")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    trainer = build_trainer(model, processor, four_clips, args, lora_config(r=4))
    with pytest.raises(ValueError, match="Nothing says when .* give `steps`, or set `eval_steps`"):
        PredictionsCallback(trainer, None, [])


@pytest.mark.parametrize("asked", [None, True])
def test_ddp_find_unused_parameters_is_off_by_default(processor, checkpoint, four_clips, tmp_path, asked):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    args = sft_config(tmp_path, ddp_find_unused_parameters=asked, assistant_only_loss=True)
    trainer = build_trainer(model, processor, four_clips, args, lora_config(r=4))
    assert trainer.args.ddp_find_unused_parameters is bool(asked)


# --- preferences -----------------------------------------------------------------------------------------------------


def test_dpo_learns_preferences(processor, checkpoint, four_clips, tmp_path):
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
