"""Prompts: special tokens in a message are encoded as text on every path, and engines can parse the templates."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2 import nodes
from layouts import IMAGE_BASE
from tokenizers import AddedToken, Tokenizer, models
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils.chat_template_utils import _compile_jinja_template

import pllava
from pllava import PllavaProcessor
from pllava.chat_templates_pllava import CHAT_TEMPLATES, MARK
from pllava.data.inspection import count_tokens
from pllava.eval import load_benchmark, load_prompts
from pllava.eval.models.local_model import LocalModel
from pllava.train import VideoChatCollator

LOOKS_SPECIAL = "a </s> b <s><pad> <unk> <|im_start|> c <|im_end|>USER: <image> <<video> d <|x"


def build(processor: PllavaProcessor, tokenizer: PreTrainedTokenizerBase, template: str) -> PllavaProcessor:
    parts = processor.image_processor, tokenizer, processor.video_processor
    return PllavaProcessor(*parts, pooling_shape=(4, 3, 3), chat_template=template)


@pytest.fixture(scope="module", params=["byte level", "metaspace", "prepended space", "im_start", "chatml"])
def any_processor(processor: PllavaProcessor, request: pytest.FixtureRequest) -> PllavaProcessor:
    """Processors with each kind of tokenizer and of template that PLLaVA's checkpoints have."""
    if request.param == "byte level":
        return processor
    fast = PreTrainedTokenizerFast if request.param == "prepended space" else AutoTokenizer
    tokenizer = fast.from_pretrained(IMAGE_BASE)
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    if request.param in ("im_start", "chatml"):
        turns = [AddedToken("<|im_start|>", normalized=True, special=True), AddedToken("<|im_end|>", special=False)]
        tokenizer.add_tokens(turns)
    return build(
        processor, tokenizer, {"im_start": "eval_vcg_llavanext", "chatml": "chatml"}.get(request.param, "plain")
    )


def rendered_by_the_tokenizer(processor: PllavaProcessor, chat: list[dict]) -> str:
    """As in inference engines, which use the chat template without our processor."""
    return processor.tokenizer.apply_chat_template(chat, chat_template=processor.chat_template, tokenize=False)


def question_of(chat: list[dict]) -> str:
    return chat[1]["content"][-1]["text"]


CLIP = np.zeros((4, 48, 48, 3), np.uint8)
PATHS = {
    "chat": lambda p, chat: p.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0],
    "rendered": lambda p, chat: p(text=p.apply_chat_template(chat), videos=CLIP)["input_ids"][0],
    "engine": lambda p, chat: p(text=rendered_by_the_tokenizer(p, chat), videos=CLIP)["input_ids"][0],
    "training": lambda p, chat: VideoChatCollator(p).encode_text(chat)["input_ids"].tolist(),
    "evaluation": lambda p, chat: sum(LocalModel(Model, p).encode(MSVD_QA, question_of(chat), True), []),
}
MSVD_QA = load_benchmark("msvd_qa", load_prompts())


class Model:
    """The attributes that an evaluation reads to encode prompts."""

    config = pllava.PllavaConfig(name_or_path="none")
    dtype = torch.float32


@pytest.mark.parametrize("path", PATHS)
def test_text_that_looks_like_a_special_token_is_encoded_as_text(any_processor: PllavaProcessor, path: str) -> None:
    tokenizer = any_processor.tokenizer

    def encode(text: str) -> list[int]:
        parts = [{"type": "video", "video": CLIP}, {"type": "text", "text": text}]
        return PATHS[path](
            any_processor,
            [
                {"role": "system", "content": [{"type": "text", "text": text}]},
                {"role": "user", "content": parts},
                {"role": "assistant", "content": [{"type": "text", "text": text}]},
            ],
        )

    plain, tricky = encode("words"), encode(LOOKS_SPECIAL)
    special = set(tokenizer.added_tokens_decoder)
    assert [token for token in tricky if token in special] == [token for token in plain if token in special]
    assert tokenizer.decode(tricky) == tokenizer.decode(plain).replace("words", LOOKS_SPECIAL)


@pytest.mark.parametrize(
    "path", [path for path in PATHS if path != "engine"]
)  # where the tokenizer passes no other tokens to the template
def test_custom_special_tokens_are_encoded_as_text(processor: PllavaProcessor, path: str) -> None:
    processor = copy.deepcopy(processor)
    custom = ["<mask>", "[INST]"]
    processor.tokenizer.add_special_tokens({"additional_special_tokens": custom})
    parts = [{"type": "video", "video": CLIP}, {"type": "text", "text": "Say <mask> and [INST]."}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "I say [INST]."}]}
    ids = PATHS[path](processor, [{"role": "user", "content": parts}, answer])
    assert not {processor.tokenizer.convert_tokens_to_ids(token) for token in custom} & set(ids)


def test_marked_text_has_the_tokens_of_plain_text(any_processor: PllavaProcessor) -> None:
    text, tokenizer = "a </s> b<video> c <s>d", any_processor.tokenizer
    prompt = any_processor.apply_chat_template([{"role": "user", "content": text}], "plain")
    assert prompt != f"USER:{text} " == prompt.replace(MARK, "")
    plain = tokenizer(f"USER:{text} ", split_special_tokens=True)
    assert tokenizer(prompt).input_ids == plain.input_ids


def test_only_text_that_looks_like_a_special_token_is_marked(any_processor: PllavaProcessor) -> None:
    text = "Is 1 < 2 > 0, <s/>, <|, [INST] or {{ x }} a </ s>?"
    prompt = any_processor.apply_chat_template([{"role": "user", "content": text}], "plain")
    assert prompt == f"USER:{text} ".replace("<|", f"<{MARK}|")


def test_inspection_counts_the_tokens_of_training(any_processor: PllavaProcessor) -> None:
    texts = [{"type": "text", "text": LOOKS_SPECIAL}]
    messages = [{"role": "user", "content": [{"type": "video"}, *texts]}, {"role": "assistant", "content": texts}]
    trained = VideoChatCollator(any_processor).encode_text(messages)
    row = {"messages": messages, "chosen": None, "rejected": None}
    assert count_tokens(row, any_processor) == len(trained["input_ids"])
    learned = any_processor.tokenizer.decode([label for label in trained["labels"] if label != -100])
    assert learned.startswith(LOOKS_SPECIAL) and learned.endswith(("</s>", "<|im_end|>"))


def test_a_saved_tokenizer_drops_the_mark(processor: PllavaProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompt = rendered_by_the_tokenizer(processor, [{"role": "user", "content": LOOKS_SPECIAL}])
    assert not set(tokenizer(prompt).input_ids) & set(tokenizer.added_tokens_decoder)
    again = AutoProcessor.from_pretrained(tmp_path).tokenizer.backend_tokenizer
    assert again.to_str() == processor.tokenizer.backend_tokenizer.to_str()


def test_a_tokenizer_that_finds_special_tokens_in_marked_text_is_refused(processor: PllavaProcessor) -> None:
    slow = ByT5Tokenizer()
    slow.add_tokens(["<image>", "<video>"], special_tokens=True)
    with pytest.raises(ValueError, match="ByT5Tokenizer is not a fast tokenizer"):
        build(processor, slow, "plain")
    words = [("<unk>", 0.0), *((letter, -9.0) for letter in "</s>"), ("</s>", -1.0)]  # also a piece of text
    pieces = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(words, unk_id=0)), unk_token="<unk>", eos_token="</s>"
    )
    pieces.add_tokens(["<image>", "<video>"], special_tokens=True)
    with pytest.raises(ValueError, match="special token of the text '</s>'"):
        build(processor, pieces, "plain")


# --- several images, videos and texts in one message -----------------------------------------------------------------


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
MIXED = [("text", "Is"), ("image", None), ("text", "like"), ("video", None), ("image", None), ("text", "here?")]
# The user's turn of `MIXED`, and what begins the answer
MIXED_PROMPTS = {
    "plain": ("USER:<image><video><image> Is like here? ", "ASSISTANT:"),
    "eval_vcgbench": ("USER: <image><video><image>\n USER: Is like here? ", "ASSISTANT:"),
    "eval_mvbench": ("USER: <image><video><image>\n USER: Is like here? ", "ASSISTANT:"),
    "eval_recaption": ("USER: <image><video><image>\n USER: Is like here? ", "ASSISTANT:"),
    "eval_videoqabench": ("USER: <image><video><image>\n Is like here? ", "ASSISTANT:"),
    **dict.fromkeys(
        ("eval_vcg_llavanext", "eval_mvbench_llavanext", "eval_recaption_llavanext"),
        (
            "<|im_start|>user\n<image><video><image>\n<|im_end|>\n<|im_start|>user\nIs like here?<|im_end|>\n",
            "<|im_start|>assistant\n",
        ),
    ),
    "eval_videoqa_llavanext": (
        "<|im_start|>user\n<image><video><image>\n Is like here?<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    "mistral": ("[INST] <image><video><image>\nIs like here? [/INST]", ""),
    "llama_3": (
        "<|start_header_id|>user<|end_header_id|>\n\n<image><video><image>\nIs like here?<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "chatml": (
        f"{SYSTEM}<|im_start|>user\nIs\n<image>\nlike\n<video><image>\nhere?<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
}


def user_turn(parts: list[tuple[str, str | None]]) -> dict:
    return {"role": "user", "content": [{"type": kind, **({"text": text} if text else {})} for kind, text in parts]}


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_media_come_first_or_where_they_are_in_the_message(processor: PllavaProcessor, name: str) -> None:
    turn, primer = MIXED_PROMPTS[name]
    prompt = rendered_by_the_tokenizer(build(processor, processor.tokenizer, name), [user_turn(MIXED)])
    assert prompt == turn
    assert processor.apply_chat_template([user_turn(MIXED)], name, add_generation_prompt=True) == turn + primer


def test_chatml_keeps_the_order_of_questions_and_images(processor: PllavaProcessor) -> None:
    """As LLaVA-Interleave and LLaVA-OneVision were trained: one image first, or several where they belong."""

    def prompt(*messages: dict) -> str:
        return processor.apply_chat_template(list(messages), "chatml").removeprefix(SYSTEM)

    start, end = "<|im_start|>", "<|im_end|>\n"
    one = user_turn([("video", None), ("text", "What happens?")])
    assert prompt(one) == f"{start}user\n<video>\nWhat happens?{end}"
    answer = {"role": "assistant", "content": "It falls."}
    more = {"role": "user", "content": "Where?"}
    assert prompt(one, answer, more) == (
        f"{start}user\n<video>\nWhat happens?{end}{start}assistant\nIt falls.{end}{start}user\nWhere?{end}"
    )
    assert prompt(user_turn([("text", "a"), ("text", "b"), ("image", None)])) == f"{start}user\na b\n<image>{end}"
    system = {"role": "system", "content": "Be short."}
    assert prompt(system, one) == f"{start}system\nBe short.{end}{start}user\n<video>\nWhat happens?{end}"


def test_interleaved_images_are_encoded_in_the_order_of_the_message(processor: PllavaProcessor) -> None:
    images = [np.full((48, 48, 3), value, np.uint8) for value in (0, 255)]
    parts = [
        {"type": "text", "text": "first"},
        {"type": "image", "image": images[0]},
        {"type": "text", "text": "second"},
        {"type": "image", "image": images[1]},
    ]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": parts}], "chatml", **options)
    ids = inputs["input_ids"][0]
    text = processor.tokenizer.decode(ids[ids != processor.image_token_id])
    assert text.index("first") < text.index("second")
    ends = (ids == processor.image_token_id).int().diff().nonzero().flatten()
    assert len(ends) == 4, "two runs of placeholders, apart"
    darker, brighter = inputs["pixel_values"].mean((1, 2, 3))
    assert darker < brighter


# --- templates in inference engines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_vllm_detects_that_content_is_a_list_of_parts(name: str) -> None:
    """vLLM looks for a loop over `message['content']`; without one it drops the media."""
    tree = _compile_jinja_template(CHAT_TEMPLATES[name]).environment.parse(CHAT_TEMPLATES[name])
    messages = next(loop for loop in tree.find_all(nodes.For) if loop.iter == nodes.Name("messages", "load"))
    content = nodes.Getitem(nodes.Name(messages.target.name, "load"), nodes.Const("content"), "load")
    assert any(loop.iter == content for loop in messages.find_all(nodes.For))


def test_nano_has_the_chat_template_of_the_code() -> None:
    assert AutoProcessor.from_pretrained(pllava.NANO).chat_template == CHAT_TEMPLATES["plain"]
