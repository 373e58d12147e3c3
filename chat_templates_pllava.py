r"""
Chat templates: the exact prompts of the original's conversation modes, under the original's names, and those of
more image models. `processor.apply_chat_template(messages, chat_template="eval_mvbench")` takes one by its name.

The same turn in the original's three styles (the 34B has the second and the third, with other tags):

    plain              "USER:<video> What happens? ASSISTANT:It leaves.</s>"
    eval_mvbench       "USER: <video>\n USER: What happens? ASSISTANT:It leaves.</s>"
    eval_videoqabench  "USER: <video>\n What happens? ASSISTANT:It leaves.</s>"

System text comes first, without a tag, as in the original's evaluation.

"chatml" has images and videos where they are in the message, for questions about several of them:

    [image, "or", image, "?"]  "<|im_start|>user\n<image>\nor\n<image>\n?<|im_end|>\n"
"""

import json

MARK = "\ufdd0"  # a Unicode noncharacter, which does not occur in text

# A template is made of these parts: the texts around the turns, `_MARKING`, the messages' content, and `_TURNS`.
#
# vLLM recognises by the loop over `message['content']` itself that the content may be a list of parts. `generation`
# marks the assistant's words and end token, which are trained on.
#
# `plain` inserts the mark into each special token that a message's text contains, so that the tokenizer does not find
# it. The tokenizer then drops the mark (see `PllavaProcessor`) and encodes the rest as words.
_MARKING = """\
{%- macro plain(text) -%}
    {%- set marked = namespace(text=text | replace('<|', '<' + mark + '|')) -%}
    {%- set own = ['<image>', '<video>', bos_token, eos_token, unk_token, pad_token] -%}
    {%- for token in own + (extra_special_tokens | default([])) if token -%}
        {%- set marked.text = marked.text | replace(token, token[0] + mark + token[1:]) -%}
    {%- endfor -%}
    {{- marked.text -}}
{%- endmacro -%}
"""
# Media come first, wherever they are in the message
_MEDIA_FIRST = """\
{%- for message in messages -%}
    {%- set turn = namespace(media='') -%}
    {%- if message['content'] is string -%}
        {%- set text = message['content'] -%}
    {%- else -%}
        {%- for part in message['content'] if part['type'] in ['video', 'image'] -%}
            {%- set turn.media = turn.media + '<' + part['type'] + '>' -%}
        {%- endfor -%}
        {%- set texts = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') -%}
        {%- set text = texts | join(' ') -%}
    {%- endif -%}
    {%- set media, text = turn.media, plain(text) -%}
"""
# Media stay where they are, and a new line begins between them and a text
_IN_ORDER = """\
{%- if messages[0]['role'] != 'system' -%}{{- system + default_system + system_end -}}{%- endif -%}
{%- for message in messages -%}
    {%- set turn = namespace(content='', last='') -%}
    {%- if message['content'] is string -%}
        {%- set turn.content = plain(message['content']) -%}
    {%- else -%}
        {%- for part in message['content'] if part['type'] in ['video', 'image', 'text'] and part['text'] != '' -%}
            {%- set kind = 'text' if part['type'] == 'text' else 'media' -%}
            {%- set between = ' ' if kind == 'text' and turn.last == 'text' else '' -%}
            {%- set between = media_end if turn.last not in ['', kind] else between -%}
            {%- set shown = plain(part['text']) if kind == 'text' else '<' + part['type'] + '>' -%}
            {%- set turn.content = turn.content + between + shown -%}
            {%- set turn.last = kind -%}
        {%- endfor -%}
    {%- endif -%}
    {%- set media, text = '', turn.content -%}
"""
_TURNS = """\
    {%- if message['role'] == 'system' -%}
        {{- system + text + system_end if text else '' -}}
    {%- elif message['role'] == 'user' -%}
        {{- user + media + (media_end if media else '') + (question if media and text else '') + text + user_end -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- assistant -}}
        {%- generation -%}{{- text + end -}}{%- endgeneration -%}
        {{- assistant_end -}}
    {%- else -%}
        {{- raise_exception("The roles are system, user and assistant; got '" + message['role'] + "'") -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- assistant -}}{%- endif -%}
"""


# Texts before and after the turns of each role. In a user's turn, `media_end` follows the placeholders, and `question`
# separates them from the text. `default_system` is for chats without a system text.
_TEXTS = (
    *("user", "user_end", "assistant", "assistant_end", "media_end", "question"),
    *("system", "system_end", "mark", "default_system"),
)


def _template(end: str | None = None, content: str = _MEDIA_FIRST, **texts: str) -> str:
    """Return a template with these `_TEXTS`; `end` is the token that ends an answer, by default EOS."""
    texts = {"assistant_end": "", "system": "", "system_end": texts["user_end"], "mark": MARK, **texts}
    values = {name: json.dumps(texts[name]) for name in _TEXTS if name in texts}
    values["end"] = json.dumps(end) if end else "eos_token"
    parts = "".join(f"{{%- set {name} = {value} -%}}\n" for name, value in values.items()), _MARKING, content, _TURNS
    return "".join(parts)


_VICUNA = {"user": "USER: ", "user_end": " ", "assistant": "ASSISTANT:", "media_end": "\n"}
_IM_START = {
    "user": "<|im_start|>user\n",
    "user_end": "<|im_end|>\n",
    "assistant": "<|im_start|>assistant\n",
    "media_end": "\n",
    "end": "<|im_end|>",
    "assistant_end": "\n",
}
_VICUNA_MEDIA_TURN = _template(**_VICUNA, question=" USER: ")
_IM_START_MEDIA_TURN = _template(**_IM_START, question="<|im_end|>\n<|im_start|>user\n")

CHAT_TEMPLATES: dict[str, str] = {
    # 7B and 13B; "plain" is the one of training and of the demo
    "plain": _template(user="USER:", user_end=" ", assistant="ASSISTANT:", media_end="", question=" "),
    "eval_vcgbench": _VICUNA_MEDIA_TURN,
    "eval_mvbench": _VICUNA_MEDIA_TURN,
    "eval_recaption": _VICUNA_MEDIA_TURN,
    "eval_videoqabench": _template(**_VICUNA, question=" "),
    # 34B; the first is the demo's
    "eval_vcg_llavanext": _IM_START_MEDIA_TURN,
    "eval_mvbench_llavanext": _IM_START_MEDIA_TURN,
    "eval_recaption_llavanext": _IM_START_MEDIA_TURN,
    "eval_videoqa_llavanext": _template(**_IM_START, question=" "),
    # Image models that the original does not support. The first has the prompts of the Qwen models of LLaVA-NeXT,
    # LLaVA-Interleave and LLaVA-OneVision, whose training puts this system text first (`preprocess_qwen`).
    "chatml": _template(
        **_IM_START,
        content=_IN_ORDER,
        question="",
        system="<|im_start|>system\n",
        default_system="You are a helpful assistant.",
    ),
    "mistral": _template(
        user="[INST] ", user_end=" [/INST]", assistant="", media_end="\n", question="", system_end="\n\n"
    ),
    "llama_3": _template(
        user="<|start_header_id|>user<|end_header_id|>\n\n",
        user_end="<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
        media_end="\n",
        question="",
        end="<|eot_id|>",
        system="<|start_header_id|>system<|end_header_id|>\n\n",
    ),
}
