"""Which of a question's options an answer names, and whether it is the right one."""

import re
from collections.abc import Sequence

from ..benchmarks.samples import LETTERS

_LETTER_IN_BRACKETS = re.compile(r"\(\s*([A-Za-z])\s*\)")  # "(A)"
_LEADING_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*(?:[).:,]+|$|\n)")  # "(A)", "A)", "A.", "A:", or "A" by itself
_LETTER_AND_TEXT = re.compile(r"\(?([A-Za-z])\s+(.+)", re.DOTALL)  # "B Opened the door."
_SEPARATOR = re.compile(r"(?:\s|[.,/&;|]|\band\b|\bor\b)*", re.IGNORECASE)


def multiple_choice_correct(prediction: str, reference: str, options: Sequence[str]) -> bool:
    """Whether the answer names the option `reference` and no other. An empty answer is wrong."""
    index = option_named(prediction, options)
    return index is not None and options[index] == reference


def option_named(prediction: str, options: Sequence[str]) -> int | None:
    """
    Return the index of the one option that an answer names, or None if it names none or several.

    An answer names an option by its letter at the beginning ("(A) ...", "A.", "a"), by its letter in brackets anywhere
    ("The answer is (A)"), or by its whole text. It names none by a letter that is a word ("A man opens"), by a letter
    without an option, or by two letters in a row ("(A)(B)").
    """
    answer = prediction.strip()
    if leading := _LEADING_LETTER.match(answer):
        index = _letter_index(leading[1], options)
        rest = answer[_SEPARATOR.match(answer, leading.end()).end() :]
        second = _LEADING_LETTER.match(rest)
        # The text of an option may itself be a letter: "(A) b" names option A alone
        if index is None or not second or normalise_answer(rest) == normalise_answer(options[index]):
            return index
        return index if _letter_index(second[1], options) in (index, None) else None
    if letters := {letter.upper() for letter in _LETTER_IN_BRACKETS.findall(answer)}:
        return _letter_index(letters.pop(), options) if len(letters) == 1 else None
    spelled = _LETTER_AND_TEXT.fullmatch(answer)
    if spelled and (index := _letter_index(spelled[1], options)) is not None:
        if normalise_answer(spelled[2]) == normalise_answer(options[index]):
            return index
    text = normalise_answer(answer)
    matches = [index for index, option in enumerate(options) if normalise_answer(option) == text != ""]
    return matches[0] if len(matches) == 1 else None


def _letter_index(letter: str, options: Sequence[str]) -> int | None:
    index = LETTERS.index(letter.upper())
    return index if index < len(options) else None


def normalise_answer(text: str) -> str:
    """Lower-case a text, collapse its white space, and strip full stops and exclamation marks at both ends."""
    return " ".join(text.casefold().split()).strip(" .!")


def with_letter(option: str, options: Sequence[str]) -> str:
    """
    Put the letter in front of an option, as in the question: "Ran." -> "(C) Ran."

    Raises:
        ValueError: if `option` is not among `options`.
    """
    if option not in options:
        raise ValueError(f"The answer {option!r} is not among the options {list(options)}")
    return f"({LETTERS[list(options).index(option)]}) {option}"
