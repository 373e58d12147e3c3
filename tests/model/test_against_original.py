"""Our model, processor and prompts against recorded outputs of the original's code (`recordings/README.md`)."""

import json
from functools import partial

import numpy as np
import plain_poolings
import pytest
import torch
from layouts import (
    IMAGE_BASE,
    NUMBERS,
    OFFICIAL_4,
    RECORDINGS,
    TRAINING_OUTPUT,
    VIDEO_TOKEN,
    widened,
    with_placeholders,
    write_official,
)
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata
from video_files import moving_frames, write_video

import pllava
from pllava.convert import convert
from pllava.data.row_formats import parse_row
from pllava.eval import Benchmark, load_benchmark, load_prompts, read_samples
from pllava.eval.scoring.multiple_choice import with_letter
from pllava.train import VideoChatCollator
from pllava.video_images_pllava import ImagesMetadata
from pllava.video_source_pllava import VideoDecodeError

FRAMES = json.loads((RECORDINGS / "frames.json").read_text())
PROMPTS = json.loads((RECORDINGS / "prompts.json").read_text())
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """An official checkpoint, converted with its adapter kept."""
    folder = tmp_path_factory.mktemp("original")
    return convert(write_official(folder / "official", shards=2), folder / "ours", keep_adapter=True)


@pytest.fixture(scope="module")
def adapted(directory):
    return pllava.load_model(directory, directory / "adapter")


@pytest.fixture(scope="module")
def model_at(directory, adapted):
    """Return a function that sets alpha and the pooling."""

    def change(alpha, pooling_shape=(4, 2, 2), pooling="average"):
        pllava.set_alpha(adapted, alpha)
        adapted.config.pooling, adapted.config.pooling_shape = pooling, pooling_shape
        return adapted

    return change


def recorded_inputs(name, tokens):
    ids = NUMBERS[f"{name}/input_ids"]
    inputs = {
        "input_ids": with_placeholders(ids, tokens),
        "attention_mask": widened(NUMBERS[f"{name}/attention_mask"], ids, tokens),
    }
    if f"{name}/pixel_values" in NUMBERS:
        pixels = NUMBERS[f"{name}/pixel_values"]
        inputs["pixel_values_videos"] = pixels.unflatten(0, (-1, 4)) if len(pixels) >= 4 else pixels[None]
    return inputs


def check_logits_and_tokens(model, inputs, ids, recorded):
    with torch.no_grad():
        logits = model(**inputs).logits[..., ::8]
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[real], NUMBERS[f"{recorded}/logits"][real], rtol=0, atol=1e-5)
    if f"{recorded}/sequences" in NUMBERS:
        expected = NUMBERS[f"{recorded}/sequences"][:, ids.shape[1] :]
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        assert output[:, inputs["input_ids"].shape[1] :].tolist() == expected.tolist()


CASES = {
    # recording: (inputs, alpha, pooling shape)
    "alpha_off0": ("single", 0, (4, 2, 2)),
    "alpha_off4": ("single", OFFICIAL_4, (4, 2, 2)),
    "alpha_raw4": ("single", 4, (4, 2, 2)),
    "alpha_off4/batch_left": ("batch_left", OFFICIAL_4, (4, 2, 2)),
    "pool_4_2_2": ("single", OFFICIAL_4, (4, 2, 2)),
    "pool_2_2_2": ("single", OFFICIAL_4, (2, 2, 2)),
    "pool_4_1_1": ("single", OFFICIAL_4, (4, 1, 1)),
    "pool_4_3_3": ("single", OFFICIAL_4, (4, 3, 3)),
    "image_rep4": ("image_rep4", OFFICIAL_4, (4, 2, 2)),
    "text_only": ("text_only", OFFICIAL_4, (4, 2, 2)),
}


@pytest.mark.parametrize("recorded", CASES)
def test_logits_and_generated_tokens_equal_the_original(model_at, recorded):
    name, alpha, shape = CASES[recorded]
    model = model_at(alpha, shape)
    inputs = recorded_inputs(name, np.prod(shape))
    check_logits_and_tokens(model, inputs, NUMBERS[f"{name}/input_ids"], recorded)


POOLED = [key.removesuffix("/projected_pooled") for key in NUMBERS if key.endswith("/projected_pooled")]


@pytest.mark.parametrize("recorded", POOLED)
def test_vision_features_and_pooled_tokens_equal_the_original(model_at, recorded):
    name, alpha, shape = CASES.get(recorded, ("single", OFFICIAL_4, (4, 2, 2)))
    inputs = recorded_inputs(name, np.prod(shape))
    with torch.no_grad():
        output = model_at(alpha, shape).get_base_model().get_video_features(inputs["pixel_values_videos"])
    torch.testing.assert_close(output.pooler_output, NUMBERS[f"{recorded}/projected_pooled"], rtol=0, atol=1e-5)
    if name == "single":
        features = output.last_hidden_state[..., ::4]
        torch.testing.assert_close(features, NUMBERS["single/vision_features"], rtol=0, atol=1e-5)


def test_all_recorded_logits_are_compared():
    recorded = {key.removesuffix("/logits") for key in NUMBERS if key.endswith("/logits")}
    assert recorded - CASES.keys() == {"train"}  # with its gradients, below
    assert {tuple(case[2]) for case in CASES.values()} == {(4, 2, 2), (2, 2, 2), (4, 1, 1), (4, 3, 3)}


def recorded_grid(*shape):
    """The original's pooled tokens of the four frames, `(frames, rows, columns, D)`."""
    return NUMBERS["pool_{}_{}_{}/projected_pooled".format(*shape)][0].unflatten(0, shape)


@pytest.mark.parametrize(
    ("pooling", "shape", "expected"),
    [
        ("slowfast", [[4, 2, 2], [4, 1, 1]], lambda: [recorded_grid(4, 2, 2), recorded_grid(4, 1, 1)]),
        ("slowfast", [[2, 3, 3], [4, 2, 2]], lambda: [recorded_grid(4, 3, 3)[[0, 2]], recorded_grid(4, 2, 2)]),
        ("slowfast", [[3, 2, 2], [2, 2, 2]], lambda: [recorded_grid(4, 2, 2)[[0, 1, 2]], recorded_grid(2, 2, 2)]),
        ("merge", [4, 3, 3], lambda: [recorded_grid(4, 3, 3)]),
        ("merge", [2, 3, 3], lambda: [plain_poolings.merge(recorded_grid(4, 3, 3), (2, 3, 3))]),
        ("merge", [3, 1, 1], lambda: [plain_poolings.merge(recorded_grid(4, 1, 1), (3, 1, 1))]),
    ],
    ids=["4 slow frames", "2 slow frames", "3 slow frames", "merge to 4", "merge to 2", "merge to 3"],
)
def test_other_poolings_are_made_of_the_tokens_of_the_original(model_at, pooling, shape, expected):
    """Both paths of "slowfast" are poolings that were recorded; "merge" joins tokens that were."""
    model = model_at(OFFICIAL_4, shape, pooling)
    inputs = recorded_inputs("single", model.config.num_video_tokens)
    with torch.no_grad():
        tokens = model.get_base_model().get_video_features(inputs["pixel_values_videos"]).pooler_output[0]
        assert model(**inputs).logits.isfinite().all()
    expected = torch.cat([part.flatten(0, -2) for part in expected()])
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)
    answer = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    assert answer.shape == (1, inputs["input_ids"].shape[1] + NEW_TOKENS)


def test_image_logits_and_tokens_equal_the_original(model_at):
    """With the image in `pixel_values`, not as a still clip."""
    inputs = recorded_inputs("image_rep4", 16)
    ids = NUMBERS["image_rep4/input_ids"]
    image = {
        "input_ids": with_placeholders(ids, 16, fill=500),
        "attention_mask": inputs["attention_mask"],
        "pixel_values": NUMBERS["image_rep4/pixel_values"],
    }
    check_logits_and_tokens(model_at(OFFICIAL_4), image, ids, "image_rep4")


def test_right_padding_gives_the_logits_of_left_padding(model_at):
    inputs = recorded_inputs("batch_left", 16)
    lengths = inputs["attention_mask"].sum(-1)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.stack([row.roll(int(n) - len(row)) for row, n in zip(inputs[name], lengths, strict=True)])
    assert inputs["attention_mask"][:, 0].all() and not inputs["attention_mask"].all()
    with torch.no_grad():
        logits = model_at(OFFICIAL_4)(**inputs).logits[..., ::8]
    for row, n, expected in zip(logits, lengths, NUMBERS["alpha_off4/batch_left/logits"], strict=True):
        torch.testing.assert_close(row[:n], expected[-n:], rtol=0, atol=1e-5)


def test_loss_and_gradients_equal_the_original(directory):
    model = pllava.load_model(directory, directory / "adapter", alpha=2, is_trainable=True).eval()  # no dropout
    ids = NUMBERS["train/input_ids"]
    inputs = recorded_inputs("train", 16)
    output = model(**inputs, labels=widened(NUMBERS["train/labels"], ids, 16))
    output.loss.backward()
    torch.testing.assert_close(output.loss, NUMBERS["train/loss"][0], rtol=0, atol=1e-5)
    real = inputs["attention_mask"].bool()
    logits, expected = output.logits[..., ::8], NUMBERS["train/logits"]
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    recorded = {key.removeprefix("train/grad/"): key for key in NUMBERS if key.startswith("train/grad/")}
    assert len(recorded) == 4
    for name, key in recorded.items():
        ours = name.replace("language_model.base_model.model.model.", "model.language_model.")
        ours = ours.replace("multi_modal_projector.", "model.multi_modal_projector.modules_to_save.default.")
        torch.testing.assert_close(gradients[f"base_model.model.{ours}"], NUMBERS[key], rtol=1e-4, atol=1e-6)
    assert all("lora_" in name or "multi_modal_projector" in name for name in gradients)


# --- the processor ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor(directory):
    return AutoProcessor.from_pretrained(directory)


def test_token_ids_equal_the_original(processor):
    texts = json.loads((RECORDINGS / "tokens.json").read_text())["texts"]
    assert len(texts) == 6
    for text in texts:
        assert processor.tokenizer(text["text"]).input_ids == text["input_ids"]
        video = processor.tokenizer(text["text"].replace("<image>", "<video>")).input_ids
        assert video == [VIDEO_TOKEN if token == 500 else token for token in text["input_ids"]]


@pytest.mark.parametrize("name", ["hd_640x360", "landscape_320x240"])
def test_pixels_are_close_to_the_original(name):
    frame = np.array(Image.open(RECORDINGS / f"{name}.png"))
    pixels = pllava.PllavaVideoProcessor()(frame[None], do_sample_frames=False, return_tensors="pt")
    difference = pixels["pixel_values_videos"][0, 0, :, ::8, ::8] - NUMBERS[f"{name}/pixel_values"].float()
    assert difference.abs().mean() < 0.001


@pytest.mark.parametrize("size", [(1280, 720), (720, 1280), (1920, 1080), (1000, 700)])
def test_pixels_of_large_frames_are_close_to_the_original(size):
    """The original resizes twice, to 640 and to 336; we resize once."""
    frame = Image.open(RECORDINGS / "hd_640x360.png").resize(size, Image.Resampling.BICUBIC)
    ratio = max(size) / min(size)
    short = max(int(640 / ratio), 336)
    twice = frame.resize((short, int(short * ratio)) if size[0] < size[1] else (int(short * ratio), short), 3)
    processor = pllava.PllavaVideoProcessor()
    ours, original = (
        processor(np.array(image)[None], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
        for image in (frame, twice)
    )
    assert 0 < (ours - original).abs().mean() < 0.01


# --- which frames ----------------------------------------------------------------------------------------------------

SAMPLER = pllava.PllavaVideoProcessor()


@pytest.mark.parametrize("first", [0, 1])
def test_frames_of_evaluation_equal_the_original(first):
    """`first` is the number of the first frame, 1 in folders of numbered images."""
    cases = [case for case in FRAMES["eval_get_index"] if case["first_idx"] == first]
    past_the_end = 0
    for case in cases:
        start, end = case["bound"] or (None, None)
        metadata = ImagesMetadata(case["max_frame"] + 1 - first, case["fps"], numbered_from=first)
        sample = partial(SAMPLER.sample_frames, metadata, num_frames=case["num_segments"], start=start, end=end)
        if (
            start is not None and start * case["fps"] > case["max_frame"]
        ):  # the original counts backwards from there; we do not
            past_the_end += 1
            with pytest.raises(VideoDecodeError, match="past the video's end"):
                sample()
        else:
            assert (sample() + first).tolist() == case["value"], case
    assert past_the_end == (21 if first == 0 else 0) and len(cases) > past_the_end


def test_frames_of_numbered_images_equal_the_original(tmp_path):
    for case in FRAMES["eval_get_index"]:
        if case["first_idx"] != 1 or case["max_frame"] > 60:
            continue
        folder = tmp_path / str(case["max_frame"])
        if not folder.exists():
            folder.mkdir()
            for number in range(1, case["max_frame"] + 1):
                Image.new("RGB", (56, 56), (number, 0, 0)).save(folder / f"{number:05d}.png")
        start, end = case["bound"]
        video = {"path": str(folder), "start": start, "end": end}
        options = {"num_frames": case["num_segments"], "do_rescale": False, "do_normalize": False, "do_resize": False}
        frames = SAMPLER(video, do_center_crop=False, return_tensors="pt", **options)["pixel_values_videos"]
        assert frames[0, :, 0, 0, 0].tolist() == case["value"]


def test_images_with_other_numbers_start_at_the_first(tmp_path):
    for number in range(100, 112):
        Image.new("RGB", (56, 56), (number, 0, 0)).save(tmp_path / f"{number:05d}.png")
    video = {"path": str(tmp_path), "start": 1, "end": 3}  # at three images a second
    options = {"num_frames": 3, "do_rescale": False, "do_normalize": False, "do_resize": False}
    frames = SAMPLER(video, do_center_crop=False, return_tensors="pt", **options)["pixel_values_videos"]
    assert frames[0, :, 0, 0, 0].tolist() == [104, 106, 108]


def test_frames_of_the_demo_equal_the_original():
    for case in FRAMES["single_get_index"]:
        indices = SAMPLER.sample_frames(VideoMetadata(case["num_frames"]), num_frames=case["num_segments"])
        assert indices.tolist() == case["value"], case


@pytest.mark.parametrize(("sampling", "recorded"), [("middle", "dataset_middle"), ("start", "dataset_fix_start")])
def test_frames_of_training_equal_the_original(sampling, recorded):
    for case in FRAMES[recorded]:
        metadata = VideoMetadata(case["vlen"])
        indices = SAMPLER.sample_frames(metadata, num_frames=case["num_frames"], sampling=sampling)
        assert indices.tolist() == case["value"], case


def test_frames_by_rate_equal_the_original():
    for case in FRAMES["dataset_fps"]:
        metadata = VideoMetadata(case["vlen"], case["input_fps"])
        indices = SAMPLER.sample_frames(metadata, fps=float(case["sample"].removeprefix("fps")))
        assert indices.tolist() == case["value"], case


def test_random_frames_are_in_the_intervals_of_the_original():
    """The original never draws an interval's last frame; we do."""
    compared = 0
    for case in FRAMES["dataset_rand_ranges"]:
        if case["falls_back_to_permutation"]:  # if intervals are single frames, the original draws any
            continue
        torch.manual_seed(0)
        options = {"num_frames": case["num_frames"], "sampling": "random"}
        drawn = np.stack([SAMPLER.sample_frames(VideoMetadata(case["vlen"]), **options) for _ in range(200)])
        for column, (first, last) in zip(drawn.T, case["interval_inclusive_possible"], strict=True):
            assert first <= column.min() and column.max() <= last + 1, case
        compared += 1
    assert compared > 10


def test_short_clips_repeat_their_frames_as_the_original_does(directory):
    model = pllava.load_model(directory, check=False).model
    for case in FRAMES["short_frame_repeat_interleave"]:
        model.config.num_frames = case["num_frames"]
        model.config.pooling_shape = [len(case["indices"]), 1, 1]
        model.multi_modal_projector = torch.nn.Identity()
        (filled,) = model.pool([torch.arange(float(case["available"])).view(-1, 1, 1)])
        assert filled.flatten().tolist() == case["indices"], case


def test_a_short_gif_keeps_the_order_of_its_frames():
    """The original repeats a short one from its beginning, which breaks the order; we do not."""
    for case in FRAMES["gif_short_tiling"]:
        indices = SAMPLER.sample_frames(VideoMetadata(case["available"]), num_frames=case["num_segments"])
        assert (np.diff(indices) >= 0).all()
        if case["available"] > case["num_segments"]:
            assert len(set(indices.tolist())) == case["num_segments"]


# --- prompts ---------------------------------------------------------------------------------------------------------


def user(text, media=True):
    parts = [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": [{"type": "image"}] * media + parts}


def system(prompt):
    return [{"role": "system", "content": "{SYSTEM}"}] if "{SYSTEM}" in prompt else []


@pytest.mark.parametrize("template", PROMPTS["single_test"])
def test_prompts_of_the_demo_equal_the_original(processor, template):
    prompt = PROMPTS["single_test"][template]
    messages = [*system(prompt), user("Describe the video in details.")]
    rendered = processor.apply_chat_template(messages, template, add_generation_prompt=True)
    assert rendered == prompt


@pytest.mark.parametrize("case", PROMPTS["eval"])
def test_prompts_of_the_benchmarks(processor, case):
    template, prompt = case.split("/")[1], PROMPTS["eval"][case]["prompt"]
    role = PROMPTS["templates"][template]["roles"]
    recorded = PROMPTS["eval"][case]["messages"]
    question = [text for who, text in recorded if who == role[0]][-1].removeprefix("<image>\n ")
    messages = [*system(prompt), user(question)]
    primers = [text for who, text in recorded if who == role[1]]
    messages += [{"role": "assistant", "content": primer} for primer in primers]
    options = {"continue_final_message": True} if primers else {"add_generation_prompt": True}
    assert processor.apply_chat_template(messages, template, **options) == prompt


@pytest.mark.parametrize("case", PROMPTS["eval"])
def test_prompts_of_our_benchmarks(processor, case):
    """As they are declared, with the recorded placeholders for the wording."""
    declared = {"mvbench": "mvbench", "vcgbench": "vcgbench", "videoqabench": "msvd_qa"}[case.split("/")[0]]
    prompts = load_prompts()
    prompts["mvbench"]["system"] = prompts["vcgbench"]["system"] = "{SYSTEM}"
    prompts["mvbench"]["question"] = "{question} \n{ASK}"
    prompts["videoqa"]["question"] = "{PRE_QUERY_PROMPT} {question} \n"
    benchmark, question = load_benchmark(declared, prompts), PROMPTS["mvbench_qa_template"]["question"]
    if declared != "mvbench":
        question = "What is the man doing?"
    chat = benchmark.chat(question, [{"type": "image"}])
    options = {"continue_final_message": True} if benchmark.primer else {"add_generation_prompt": True}
    template = case.split("/")[1]
    assert template in benchmark.chat_template.values()
    recorded = PROMPTS["eval"][case]
    assert processor.apply_chat_template(chat, template, **options) == recorded["prompt"]
    assert benchmark.max_new_tokens == recorded["generate"]["max_new_tokens"]
    assert list(benchmark.stop) == recorded["generate"].get("stop_criteria_keywords", [])


def test_options_are_listed_as_in_the_original(tmp_path):
    recorded = PROMPTS["mvbench_qa_template"]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"video": "a.mp4", **recorded["data"]}]))
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    tasks = {"task": {"file": "rows.json", "media": "clips"}}
    (sample,) = read_samples(Benchmark("mine", "mine", "mvbench", "multiple_choice", tasks), str(tmp_path))
    assert sample.questions == (recorded["question"],)
    assert with_letter(sample.reference, sample.options) == recorded["answer"]


@pytest.mark.parametrize("template", PROMPTS["two_turn"])
def test_prompts_of_a_second_turn(processor, template):
    """Equal but for the turn of the media, which the recorded demo repeats: that is removed first."""
    first, second = PROMPTS["two_turn"][template]["turns"]
    answer = first["raw_reply"]
    recorded = second["prompt"].replace(" USER:  USER:", " USER:").replace("<image>  USER:", "<image> ")
    recorded = recorded.replace("<|im_start|>user\n<|im_end|>\n", "").replace("<image>\n  USER: ", "<image>\n ")
    messages = [*system(recorded), user(first["question"]), {"role": "assistant", "content": answer}]
    messages.append(user(second["question"], media=False))
    assert processor.apply_chat_template(messages, template, add_generation_prompt=True) == recorded


def test_a_prompt_without_media_equals_the_original(processor):
    rendered = processor.apply_chat_template([user("What is the man doing?", media=False)], add_generation_prompt=True)
    assert rendered == PROMPTS["text_only_plain"]


def test_an_answer_prefix_is_continued(processor):
    """The benchmarks' prefixes: the model continues the assistant's turn, which has no end token yet."""
    chat = [user("Which one?", media=False), {"role": "assistant", "content": "Best option:("}]
    inputs = processor.apply_chat_template(
        chat, "eval_mvbench", continue_final_message=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    text = "USER: Which one? ASSISTANT:Best option:("
    assert inputs["input_ids"].tolist() == processor.tokenizer(text, return_tensors="pt").input_ids.tolist()


def test_a_training_output_converts_to_the_weights_of_the_official_checkpoint(directory, tmp_path):
    other = convert(TRAINING_OUTPUT, tmp_path / "ours", base=IMAGE_BASE, keep_adapter=True)

    def weights(folder):
        return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}

    for folder in (".", "adapter"):
        ours, theirs = weights(directory / folder), weights(other / folder)
        assert ours.keys() == theirs.keys()
        equal = {key for key in ours if torch.equal(ours[key], theirs[key])}
        # the base has the image model's projector; the trained one is in the adapter
        assert ours.keys() - equal == ({key for key in ours if "projector" in key} if folder == "." else set())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (other, directory)]
    assert {config.pop("origin")["kind"] for config in configs} == {"training", "official"}
    configs[1]["text_config"].pop("gradient_checkpointing")  # the original writes one into its config
    configs[0]["text_config"].pop("gradient_checkpointing", None)
    assert configs[0] == configs[1]


# --- labels ----------------------------------------------------------------------------------------------------------

LABELS = json.loads((RECORDINGS / "labels.json").read_text())["cases"]
SPACE, END = 350, 2  # of the recordings' tokenizer: a word's leading space alone, and </s>


@pytest.fixture(scope="module")
def encode(processor, tmp_path_factory):
    """Return a function that encodes a VideoChat2-IT annotation with our reader and collator: token ids and labels."""
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "clip.mp4", moving_frames(8))
    Image.new("RGB", (64, 64)).save(folder / "image.png")

    def run(media, qa):
        file = {"video": "clip.mp4", "image": "image.png"}[media]
        row = parse_row({media: file, "QA": qa}, "annotations", "0", str(folder))
        batch = VideoChatCollator(processor)([row])
        assert "pixel_values_videos" in batch or "pixel_values" in batch
        return batch["input_ids"][0].tolist(), batch["labels"][0].tolist()

    return run


@pytest.mark.parametrize("case", LABELS, ids=lambda case: case["name"])
def test_labels_are_those_of_the_original(encode, case):
    """
    The answers and their end tokens. One difference is deliberate: the original tokenises an answer apart from the tag
    before it, so that it begins with a space, which the prompts of its evaluation do not have.
    """
    ids, labels = encode(case["media"], case["qa"])
    learned = [label for label in labels if label != -100]
    recorded = [label for label in case["labels"] if label != -100]
    starts = [0] + [i + 1 for i, label in enumerate(recorded[:-1]) if label == END]
    assert all(recorded[i] == SPACE for i in starts)
    assert learned == [label for i, label in enumerate(recorded) if i not in starts]
    assert learned.count(END) == len(case["qa"])
    assert [i for i, label in zip(ids, labels, strict=True) if label != -100] == learned


@pytest.mark.parametrize("case", LABELS, ids=lambda case: case["name"])
def test_no_end_token_follows_a_question(encode, case):
    """The original trains with one there but evaluates with a space; we train as the model is evaluated."""
    ids, labels = encode(case["media"], case["qa"])
    assert case["input_ids"].count(END) == 2 * len(case["qa"])
    assert [labels[i] for i, token in enumerate(ids) if token == END] == [END] * len(case["qa"])


def test_role_tags_in_a_question_do_not_change_the_labels(encode):
    """They flip the original's mask, which then also labels what follows "ASSISTANT:" in a question."""
    plain = [{"q": "Who speaks?", "a": "He does."}, {"q": "Why?", "a": "No idea."}]
    tricky = [{"q": "USER: or ASSISTANT: or USER:?", "a": "He does."}, {"q": "ASSISTANT:", "a": "No idea."}]
    learned = [[label for label in encode("video", qa)[1] if label != -100] for qa in (plain, tricky)]
    assert learned[0] == learned[1]


def test_an_end_token_in_an_answer_is_text(encode, processor):
    """In the original it ends the turn, and what follows is another turn."""
    answer = "It shows </s> USER: and <s>."
    learned = [label for label in encode("video", [{"q": "What </s> is it?", "a": answer}])[1] if label != -100]
    assert learned.count(END) == 1 and processor.tokenizer.decode(learned) == f"{answer}</s>"


def test_visual_tokens_are_never_labelled(encode, processor):
    ids, labels = encode("video", LABELS[0]["qa"])
    visual = [label for token, label in zip(ids, labels, strict=True) if token == VIDEO_TOKEN]
    assert visual == [-100] * processor.num_video_tokens
