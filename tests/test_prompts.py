"""What inference engines read in the chat templates."""

import pytest
from jinja2 import nodes
from transformers import AutoProcessor
from transformers.utils.chat_template_utils import _compile_jinja_template

import pllava
from pllava.chat_templates_pllava import CHAT_TEMPLATES


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_engines_see_that_content_is_a_list_of_parts(name: str) -> None:
    """vLLM looks for a loop over `message['content']`; where it finds none, it leaves the media out of the prompt."""
    tree = _compile_jinja_template(CHAT_TEMPLATES[name]).environment.parse(CHAT_TEMPLATES[name])
    messages = next(loop for loop in tree.find_all(nodes.For) if loop.iter == nodes.Name("messages", "load"))
    content = nodes.Getitem(nodes.Name(messages.target.name, "load"), nodes.Const("content"), "load")
    assert any(loop.iter == content for loop in messages.find_all(nodes.For))


def test_nano_has_the_chat_template_of_the_code() -> None:
    assert AutoProcessor.from_pretrained(pllava.NANO).chat_template == CHAT_TEMPLATES["plain"]
