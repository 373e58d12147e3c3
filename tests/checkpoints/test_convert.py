"""Conversion of every layout: equal answers, the files that are written, and the command."""

import json
from functools import partial

import forked
import pytest
import torch
from bare_environment import run_bare
from layouts import IMAGE_BASE, NUMBERS, OFFICIAL_4, TRAINING_OUTPUT, with_placeholders, write_official
from llava_models import write_llava
from local_hub import local_hub
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaForConditionalGeneration,
)

import pllava
from pllava.chat_templates_pllava import CHAT_TEMPLATES
from pllava.convert import convert

PROMPT = NUMBERS["single/input_ids"].shape[1]


@pytest.fixture
def official(tmp_path):
    return write_official(tmp_path / "official", shards=2)


# --- every layout ----------------------------------------------------------------------------------------------------

# Loads checkpoints by their remote code, and answers the recorded prompt.
REMOTE = """
import json
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

video = load_file(sys.argv[1])
text = {"input_ids": video.pop("text")}
chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}]
answers = {}
for directory in sys.argv[2:]:
    load = {"pretrained_model_name_or_path": directory, "trust_remote_code": True}
    processor = AutoProcessor.from_pretrained(**load)
    assert processor.tokenizer.convert_tokens_to_ids("<video>") == processor.video_token_id
    prompt = processor.apply_chat_template(chat, "eval_mvbench", add_generation_prompt=True)
    assert prompt == "USER: <video>\\n USER: What happens? ASSISTANT:", prompt
    AutoModel.from_pretrained(**load)
    inputs = text if directory.endswith("image") else video
    answers[directory] = []
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        model = auto.from_pretrained(**load, dtype=torch.float32)
        if directory.endswith("kept"):
            model = PeftModel.from_pretrained(model, directory + "/adapter").eval()
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answers[directory].append(output[0, inputs["input_ids"].shape[1] :].tolist())
print("\\n" + json.dumps(answers))
"""


def test_every_layout_generates_the_recorded_tokens_by_remote_code(tmp_path):
    single = write_official(tmp_path / "single")
    sharded = write_official(tmp_path / "sharded", shards=3)
    bfloat16 = write_official(tmp_path / "bfloat16", shards=2, dtype=torch.bfloat16)
    outs = {name: tmp_path / "out" / name for name in ("single", "sharded", "bfloat16", "training", "ours", "image")}
    for source in (single, sharded, bfloat16):
        convert(source, outs[source.name], alpha=OFFICIAL_4)
    convert(TRAINING_OUTPUT, outs["training"], base=IMAGE_BASE, alpha=OFFICIAL_4)
    kept = convert(TRAINING_OUTPUT, tmp_path / "out" / "kept", base=IMAGE_BASE, alpha=OFFICIAL_4, keep_adapter=True)
    convert(kept, outs["ours"], adapter=kept / "adapter")
    convert(IMAGE_BASE, outs["image"])
    ids = NUMBERS["single/input_ids"]
    inputs = {
        "input_ids": with_placeholders(ids, 16),
        "pixel_values_videos": NUMBERS["single/pixel_values"][None],
        "text": NUMBERS["text_only/input_ids"],
    }
    save_file(inputs, tmp_path / "inputs.safetensors")
    run = run_bare(
        REMOTE,
        tmp_path / "inputs.safetensors",
        *outs.values(),
        kept,
        packages=("peft",),
        HF_MODULES_CACHE=str(tmp_path / "modules"),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    answers = json.loads(run.stdout.splitlines()[-1])
    expected = dict.fromkeys((*outs.values(), kept), NUMBERS["alpha_off4/sequences"][0, PROMPT:].tolist())
    expected[outs["image"]] = NUMBERS["text_only/sequences"][0, inputs["text"].shape[1] :].tolist()
    assert answers == {str(directory): [tokens, tokens] for directory, tokens in expected.items()}
    assert len(list(outs["sharded"].glob("*.safetensors"))) > 1
    assert load_file(next(outs["bfloat16"].glob("*.safetensors"))).popitem()[1].dtype == torch.bfloat16


def test_a_converted_image_model_equals_llava(tmp_path):
    """Text equals the recording; an image that is pooled to its own grid equals transformers' LLaVA."""
    directory = convert(IMAGE_BASE, tmp_path / "out")
    loaded = AutoModelForImageTextToText.from_pretrained(directory)
    expected = NUMBERS["text_only/sequences"][0, NUMBERS["text_only/input_ids"].shape[1] :].tolist()
    output = loaded.generate(NUMBERS["text_only/input_ids"], max_new_tokens=8, do_sample=False)
    assert output[0, -8:].tolist() == expected
    assert loaded.config.num_frames == 16 and loaded.config.pooling_shape == [16, 2, 2]
    assert loaded.config.image_pooling_shape == [1, 4, 4]

    grid = {"num_frames": 1, "pooling_shape": [1, 4, 4]}
    pooled = AutoModelForImageTextToText.from_pretrained(directory, **grid)
    assert AutoProcessor.from_pretrained(directory, pooling_shape=[1, 4, 4]).num_video_tokens == 16
    llava = LlavaForConditionalGeneration.from_pretrained(IMAGE_BASE)
    inputs = {
        "input_ids": with_placeholders(NUMBERS["image_rep4/input_ids"], 16, fill=500),
        "pixel_values": NUMBERS["image_rep4/pixel_values"],
    }
    with torch.no_grad():
        torch.testing.assert_close(pooled(**inputs).logits, llava(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [0, OFFICIAL_4, 4, 32])
def test_merged_weights_and_kept_adapter_agree(official, tmp_path, alpha):
    merged = pllava.load_model(convert(official, tmp_path / "merged", alpha=alpha))
    kept = convert(official, tmp_path / "kept", keep_adapter=True)
    adapted = pllava.load_model(adapter=kept / "adapter", alpha=alpha)
    again = pllava.load_model(convert(kept, tmp_path / "again", adapter=kept / "adapter", alpha=alpha))
    ids = with_placeholders(NUMBERS["single/input_ids"], 16)
    pixels = NUMBERS["single/pixel_values"][None]
    with torch.no_grad():
        logits = [model(ids, pixel_values_videos=pixels).logits for model in (merged, adapted, again)]
        logits.append(adapted.merge_and_unload()(ids, pixel_values_videos=pixels).logits)
    for other in logits[1:]:
        torch.testing.assert_close(logits[0], other, rtol=0, atol=1e-5)


def test_written_files_and_configs(official, tmp_path):
    lines = []
    directory = convert(official, tmp_path / "out", report=lines.append)
    assert "official PLLaVA checkpoint" in lines[0] and "vision layer 2" in lines[1]
    assert {
        "config.json",
        "processor_config.json",
        "tokenizer.json",
        "generation_config.json",
        "chat_template.jinja",
    } | {
        "modeling_pllava.py",
        "chat_templates_pllava.py",
        "model.safetensors.index.json",
    } <= {file.name for file in directory.iterdir()}
    assert {file.name for file in tmp_path.iterdir()} == {"official", "out"}
    config = json.loads((directory / "config.json").read_text())
    assert (config["image_token_index"], config["video_token_index"]) == (500, 502)
    assert config["text_config"]["vocab_size"] == 512, "there was a spare row for <video>"
    assert (config["num_frames"], config["pooling_shape"], config["dtype"]) == (4, [4, 2, 2], "float32")
    processor = AutoProcessor.from_pretrained(directory)
    assert processor.chat_template == CHAT_TEMPLATES["plain"]
    assert processor.tokenizer.padding_side == "left"
    assert processor.video_processor.size["shortest_edge"] == 56
    generation = GenerationConfig.from_pretrained(directory)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 501)


def test_a_model_that_was_trained_on_videos_keeps_its_pooling_unless_another_is_asked_for(official, tmp_path):
    kept = convert(official, tmp_path / "kept", keep_adapter=True)
    assert pllava.PllavaConfig.from_pretrained(kept).image_pooling_shape is None
    merged = {"adapter": kept / "adapter", "num_frames": 8, "pooling": "slowfast-2x2x4+8x1x1"}
    for source, options in ((official, {"num_frames": 8, "pooling": "merge"}), (kept, merged)):
        directory = convert(source, tmp_path / f"{source.name} pooled", **options)
        config, processor = pllava.PllavaConfig.from_pretrained(directory), AutoProcessor.from_pretrained(directory)
        shape = [4, 2, 2] if options["pooling"] == "merge" else [[2, 2, 4], [8, 1, 1]]
        for each in (config, processor):
            assert (each.num_frames, each.pooling, each.pooling_shape) == (8, options["pooling"].split("-")[0], shape)
            assert each.image_pooling_shape is None
    frames = convert(official, tmp_path / "frames", num_frames=8)
    assert pllava.PllavaConfig.from_pretrained(frames).pooling_shape == [8, 2, 2]


def test_embeddings_grow_if_no_row_is_spare(tmp_path):
    write_llava(tmp_path / "llava", "vicuna")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llava")
    tokenizer.add_tokens([f"<{number}>" for number in range(512 - len(tokenizer))], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(tmp_path / "llava")
    directory = convert(tmp_path / "llava", tmp_path / "out")
    model = pllava.load_model(directory)
    assert (model.config.text_config.pad_token_id, model.config.video_token_id) == (512, 513)
    assert model.config.text_config.vocab_size == 576
    for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert weight.shape[0] == 576
        torch.testing.assert_close(weight[512:], weight[:512].mean(0, keepdim=True).expand(64, -1))
    logits = model(torch.tensor([[1, 17, 250]])).logits
    assert (logits.argmax(-1) < 512).all(), "a row that no text uses is never the likeliest"


# --- the Hub and the command -----------------------------------------------------------------------------------------


def test_the_command_converts_a_hub_repository(tmp_path):
    write_official(tmp_path / "hub" / "ermu2001" / "pllava-7b", shards=2)
    (tmp_path / "hub" / "ermu2001" / "pllava-7b" / "pytorch_model.bin").write_bytes(b"not downloaded")
    with local_hub(tmp_path / "hub") as address:
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        run = partial(forked.run, "pllava", "convert", cwd=tmp_path, **environment)
        done = run("ermu2001/pllava-7b", "out", "--alpha", "0.25")
        assert done.returncode == 0, done.stderr
        assert "an official PLLaVA checkpoint" in done.stdout and "Converting: 100%" in done.stderr
        missing = run("ermu2001/pllava-8b", "out2")
    assert missing.returncode == 1 and "ermu2001/pllava-8b" in missing.stderr and "Traceback" not in missing.stderr
    assert not list((tmp_path / "home").rglob("*.bin"))
    model = pllava.load_model(tmp_path / "out")
    output = model.generate(
        with_placeholders(NUMBERS["single/input_ids"], 16),
        pixel_values_videos=NUMBERS["single/pixel_values"][None],
        max_new_tokens=8,
        do_sample=False,
    )
    assert output[0, -8:].tolist() == NUMBERS["alpha_off4/sequences"][0, PROMPT:].tolist()
