"""Loading models and adapters: alpha, the check after loading, quantisation, devices, and training further."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from layouts import IMAGE_BASE, NUMBERS, SIZES, VISION_L, llama_config, with_placeholders, write_official
from model_inputs import TOKENS
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoProcessor, BitsAndBytesConfig, TorchAoConfig
from trl import SFTConfig
from typer.testing import CliRunner

import pllava
from pllava import load_model, lora_config, quantization_config, set_alpha
from pllava.checkpoint_files import fingerprint
from pllava.convert import convert
from pllava.loading import Checkpoint
from pllava.train import VideoChatCollator, build_trainer
from pllava_cli import app


@pytest.fixture(scope="module")
def inputs(processor):
    text = f"USER:{processor.video_token * 36} What happens? ASSISTANT:"
    ids = processor.tokenizer(text, return_tensors="pt").input_ids
    return {"input_ids": ids, "pixel_values_videos": torch.randn(1, 4, 3, 48, 48)}


def save_adapter(checkpoint, directory, train=True, use_rslora=False):
    """An adapter of rank 8 at alpha 8, with a projector, as training saves it."""
    config = lora_config(r=8, lora_alpha=8)
    config.use_rslora = use_rslora
    model = get_peft_model(load_model(checkpoint), config)
    if train:
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3) if "lora_" in name else parameter.data.mul_(1.1)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    return save_adapter(checkpoint, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """An official checkpoint, merged and with its adapter kept."""
    directory = tmp_path_factory.mktemp("converted")
    official = write_official(directory / "official")
    return {keep: convert(official, directory / str(keep), keep_adapter=keep) for keep in (False, True)}


@pytest.fixture(scope="module")
def recorded():
    """Inputs for a converted checkpoint."""
    ids = with_placeholders(NUMBERS["single/input_ids"], 16)
    return {"input_ids": ids, "pixel_values_videos": NUMBERS["single/pixel_values"][None]}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


# --- alpha -----------------------------------------------------------------------------------------------------------


def test_setting_alpha_equals_loading_with_it(checkpoint, adapter, inputs):
    swept, results = load_model(checkpoint, adapter), []
    for alpha in (8, 0, 2.5, 32, 8):
        set_alpha(swept, alpha)
        fresh = load_model(checkpoint, adapter, alpha=alpha)
        assert torch.equal(logits(swept, inputs), logits(fresh, inputs))
        results.append(logits(swept, inputs))
    assert torch.equal(results[0], results[-1]) and len({float(one.sum()) for one in results}) == 4
    assert torch.equal(results[0], logits(load_model(checkpoint, adapter), inputs)), "alpha's default is in the config"


def test_alpha_scales_the_update_as_in_equation_3(checkpoint, adapter):
    model = load_model(checkpoint, adapter, alpha=3)
    name = "language_model.layers.1.self_attn.v_proj"
    layer = model.get_submodule(f"base_model.model.model.{name}")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer.weight + 3 / 8 * b @ a
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged.get_submodule(f"model.{name}").weight, expected)


def test_alpha_is_saved_with_the_adapter(checkpoint, adapter, inputs, tmp_path):
    model = load_model(checkpoint, adapter, alpha=3)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 3
    assert torch.equal(logits(load_model(checkpoint, tmp_path), inputs), logits(model, inputs))


def test_alpha_of_rank_stabilised_lora(checkpoint, tmp_path):
    config = lora_config(r=16, lora_alpha=8)
    config.use_rslora = True
    model = get_peft_model(load_model(checkpoint), config)
    set_alpha(model, 2)
    scalings = {tuple(module.scaling.values()) for module in model.modules() if hasattr(module, "lora_A")}
    assert scalings == {(2 / 4,)}


def test_alpha_without_lora_layers_is_an_error(checkpoint, adapter):
    with pytest.raises(ValueError, match="has none"):
        set_alpha(load_model(checkpoint), 4)
    merged = load_model(checkpoint, adapter)
    merged.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        set_alpha(merged, 4)
    with pytest.raises(ValueError, match="pass an adapter"):
        load_model(checkpoint, alpha=4)


# --- agreement with PEFT ---------------------------------------------------------------------------------------------


def test_a_kept_adapter_loads_with_peft(tmp_path):
    kept = convert(write_official(tmp_path / "official"), tmp_path / "kept", keep_adapter=True)
    config = json.loads((kept / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["multi_modal_projector"] and config["lora_alpha"] == 4 and config["r"] == 8
    assert config["base_model_name_or_path"] == str(kept)
    ids = with_placeholders(NUMBERS["single/input_ids"], 16)
    ours = logits(load_model(adapter=kept / "adapter"), {"input_ids": ids})
    plain = PeftModel.from_pretrained(load_model(kept), kept / "adapter").eval()
    assert torch.equal(logits(plain, {"input_ids": ids}), ours)


@pytest.mark.parametrize("rslora", [False, True])
def test_converting_merges_an_adapter_as_peft_does(checkpoint, inputs, tmp_path, rslora):
    adapter = save_adapter(checkpoint, tmp_path / "adapter", use_rslora=rslora)
    out = convert(checkpoint, tmp_path / "out", adapter=adapter)
    expected = load_model(checkpoint, adapter).merge_and_unload()
    merged = load_model(out)
    assert merged.state_dict().keys() == expected.state_dict().keys()
    torch.testing.assert_close(logits(merged, inputs), logits(expected, inputs), rtol=0, atol=1e-5)
    kept = convert(checkpoint, tmp_path / "kept", adapter=adapter, alpha=3, keep_adapter=True)
    expected = load_model(checkpoint, adapter, alpha=3)
    torch.testing.assert_close(
        logits(load_model(adapter=kept / "adapter"), inputs), logits(expected, inputs), rtol=0, atol=1e-5
    )


# --- broken models and adapters --------------------------------------------------------------------------------------


def changed(checkpoint, directory, change):
    shutil.copytree(checkpoint, directory)
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_a_blind_model_is_an_error(checkpoint, tmp_path):
    blind = changed(
        checkpoint,
        tmp_path / "blind",
        lambda weights: weights[next(k for k in weights if "linear_2.weight" in k)].zero_(),
    )
    with pytest.raises(ValueError, match="does not see its videos"):
        load_model(blind)
    assert load_model(blind, check=False) is not None


def test_weights_with_nan_are_an_error(checkpoint, tmp_path):
    def change(weights):
        weights[next(key for key in weights if "linear_2.weight" in key)][0, 0] = float("nan")

    broken = changed(checkpoint, tmp_path / "broken", change)
    with pytest.raises(ValueError, match="not finite"):
        load_model(broken)


def test_an_adapter_without_effect_is_an_error(checkpoint, tmp_path):
    untrained = save_adapter(checkpoint, tmp_path, train=False)
    with pytest.raises(ValueError, match="does not change the logits"):
        load_model(checkpoint, untrained)
    assert load_model(checkpoint, untrained, check=False) is not None
    assert load_model(checkpoint, untrained, is_trainable=True) is not None, "training starts from one"


def test_an_adapter_at_alpha_0_may_be_without_effect(tmp_path):
    """Adapter and model of an official checkpoint have the same projector: they differ in the LoRA only."""
    kept = convert(write_official(tmp_path / "official"), tmp_path / "kept", keep_adapter=True)
    assert load_model(adapter=kept / "adapter", alpha=0) is not None


@pytest.mark.parametrize("part", ["lora_A", "multi_modal_projector"])
def test_an_adapter_with_other_names_is_an_error(checkpoint, adapter, tmp_path, part):
    """PEFT only warns of missing weights, and ignores unexpected ones."""
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    weights = load_file(other / "adapter_model.safetensors")
    name = next(key for key in sorted(weights) if part in key)
    weights[name.replace(part, f"old_{part}")] = weights.pop(name)
    save_file(weights, other / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not fit this model") as caught:
        load_model(checkpoint, other)
    assert part in str(caught.value)


def test_pickled_adapters_and_other_models_are_refused(checkpoint, adapter, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(adapter, pickled)
    torch.save(load_file(pickled / "adapter_model.safetensors"), pickled / "adapter_model.bin")
    (pickled / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="pickled"):
        load_model(checkpoint, pickled)
    with pytest.raises(ValueError, match="pllava convert"):
        load_model(IMAGE_BASE)
    with pytest.raises(ValueError, match="Pass a model"):
        load_model()


def test_a_hub_adapter_has_the_same_revision_before_and_after_loading(checkpoint, adapter, monkeypatch):
    monkeypatch.setattr("pllava.adapters.download", lambda *arguments: adapter)
    announced = Checkpoint.read(checkpoint, "somebody/adapter")
    config = load_model(checkpoint, "somebody/adapter").get_base_model().config
    assert Checkpoint.of(config, "float32", "somebody/adapter", alpha=8) == announced
    assert announced.adapter_revision == fingerprint(adapter)


# --- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a GPU multiplies float16 as fast as bfloat16")
def test_float16_weights_are_bfloat16_on_a_cpu_unless_float16_is_asked_for(checkpoint, tmp_path):
    load_model(checkpoint, dtype=torch.float16).save_pretrained(tmp_path)
    for options in ({}, {"dtype": "auto"}):
        assert load_model(tmp_path, **options).dtype == torch.bfloat16
        assert Checkpoint.read(tmp_path, **options).dtype == "bfloat16"
    assert load_model(tmp_path, dtype="float16").dtype == torch.float16
    assert Checkpoint.read(tmp_path, dtype="float16").dtype == "float16"


# --- quantisation and devices ----------------------------------------------------------------------------------------

TEXT_ONLY = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


def torchao_config():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=TEXT_ONLY)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (lambda: quantization_config(4), "Linear4bit"),
        (lambda: quantization_config(8), "Linear8bitLt"),
        (torchao_config, "Int8Tensor"),
    ],
    ids=["bitsandbytes 4 bit", "bitsandbytes 8 bit", "torchao"],
)
def test_quantised_models_work_with_and_without_an_adapter(converted, recorded, config, kind):
    whole = logits(load_model(converted[True]), recorded)
    load = {"quantization_config": config(), "device_map": "cpu", "dtype": torch.float32}
    model = load_model(converted[True], **load)
    layer = model.model.language_model.layers[0].self_attn.q_proj
    assert kind in (type(layer).__name__, type(layer.weight).__name__)
    towers = [*model.model.vision_tower.modules(), *model.model.multi_modal_projector.modules(), model.lm_head]
    linear = [module for module in towers if isinstance(module, nn.Linear)]
    assert len(linear) > 10 and all(type(module) is nn.Linear for module in linear), "only the text model is quantised"
    difference = (logits(model, recorded) - whole).abs().mean() / whole.abs().mean()
    assert 0 < difference < 0.3
    adapted = load_model(adapter=converted[True] / "adapter", **load)
    assert not torch.equal(logits(adapted, recorded), logits(model, recorded))


@pytest.mark.parametrize("bits", [4, 8])
def test_tower_and_projector_can_be_quantised(converted, recorded, bits):
    """An adapter with a projector then does not fit."""
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    load = {"quantization_config": config, "device_map": "cpu", "dtype": torch.float32}
    model = load_model(converted[True], **load)
    assert type(model.model.multi_modal_projector.linear_1) is not nn.Linear
    assert logits(model, recorded).isfinite().all()
    with pytest.raises(ValueError, match="quantization_config"):
        load_model(adapter=converted[True] / "adapter", **load)


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(ValueError, match="4 or 8 bits; got 3"):
        quantization_config(3)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, {"model": "disk", "lm_head": "cpu"}])
def test_device_maps_give_equal_logits(checkpoint, inputs, tmp_path, device_map):
    model = load_model(checkpoint, device_map=device_map, offload_folder=str(tmp_path))
    torch.testing.assert_close(logits(model, inputs), logits(load_model(checkpoint), inputs))


def test_a_dispatched_model_takes_an_adapter(checkpoint, adapter, inputs):
    model = load_model(checkpoint, adapter, device_map="auto")
    torch.testing.assert_close(logits(model, inputs), logits(load_model(checkpoint, adapter), inputs))


def test_a_34b_is_split_over_devices_between_layers():
    """transformers' plan of `device_map="auto"` for three cards of 24 GiB; nothing is allocated."""
    from transformers.integrations.accelerate import _get_device_map

    config = pllava.PllavaConfig(text_config=llama_config(*SIZES["34b"]), vision_config=VISION_L)
    with torch.device("meta"):
        model = pllava.PllavaForConditionalGeneration(config)
    cards = {0: 24 * 2**30, 1: 24 * 2**30, 2: 24 * 2**30, "cpu": 64 * 2**30}
    device_of = _get_device_map(model.to(torch.bfloat16), "auto", cards, None)
    assert set(device_of.values()) == {0, 1, 2}
    layers = [name for name in device_of if ".layers." in name]
    assert len(layers) == 60 and all(name.split(".layers.")[1].isdecimal() for name in layers)


# --- training further ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False], ids=["adapter kept", "merged"])
def test_a_converted_checkpoint_can_be_trained_further(converted, keep, clips, tmp_path):
    directory = converted[keep]
    processor = AutoProcessor.from_pretrained(directory)
    adapter = directory / "adapter" if keep else None
    model = load_model(directory, adapter, alpha=32 if keep else None, is_trainable=keep)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    question = [{"type": "video"}, {"type": "text", "text": "What is it?"}]
    answer = [{"type": "text", "text": "a dog, a dog, a dog"}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    rows = Dataset.from_list([{"messages": messages, "videos": [str(clips[0])]}] * 4)
    args = SFTConfig(
        str(tmp_path / "out"),
        max_steps=30,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=5,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = build_trainer(model, processor, rows, args, peft_config=None if keep else lora_config(r=8))
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.6 * losses[0], losses
    after = trainer.model.state_dict()
    if keep:
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved and all("lora_" in name or "modules_to_save" in name for name in moved), moved
    trainer.save_model()
    batch = VideoChatCollator(processor, sampling="uniform")([rows[0]])
    with torch.no_grad():
        again = load_model(directory, tmp_path / "out")
        torch.testing.assert_close(again(**batch).loss, trainer.model.eval()(**batch).loss, atol=1e-4, rtol=1e-4)


# --- the commands ----------------------------------------------------------------------------------------------------


def run(*arguments):
    """Run the command in this process."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


def test_chat_takes_an_adapter_and_alpha(checkpoint, adapter, processor, clips):
    answers = []
    for alpha in (0, 40):
        options = ["--adapter", adapter, "--alpha", alpha, "--max-new-tokens", TOKENS]
        result = run("chat", clips[0], "What happens?", *options)
        content = [{"type": "video", "path": str(clips[0])}, {"type": "text", "text": "What happens?"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        model = load_model(checkpoint, adapter, alpha=alpha)
        ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        answers.append(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
        assert result.stdout.strip() == answers[-1]
    assert answers[0] != answers[1]


def test_caption_takes_an_adapter_and_quantisation(converted, clips, tmp_path):
    out, adapter = tmp_path / "captions.jsonl", converted[True] / "adapter"
    options = ["--adapter", adapter, "--alpha", 4, "--load-in-4bit", "--device", "cpu", "--max-new-tokens", TOKENS]
    run("caption", clips[0], "--out", out, *options)
    assert json.loads(out.read_text())["caption"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model", IMAGE_BASE], 1, "pllava convert"),
        (["--alpha", 4], 2, "adapter"),
        (["--adapter", IMAGE_BASE], 1, "not a PEFT adapter"),
        (["--load-in-4bit", "--load-in-8bit"], 2, "one of"),
    ],
)
def test_options_that_exclude_each_other_are_refused_without_a_traceback(clips, options, code, message):
    result = CliRunner().invoke(app, ["chat", str(clips[0]), "What?", *map(str, options)], env={"COLUMNS": "1000"})
    assert result.exit_code == code and message in result.stderr, result.stderr
