"""The log of the server: each line has the id of the request that it is about."""

import logging
import re
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from ..video_decoding_pllava import VideoTruncatedWarning

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass
class Call:
    """A request under way, and what is logged about it. `cancel` ends its generation."""

    id: str
    began: float = field(default_factory=time.perf_counter)
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    generated_tokens: int = 0
    first_token: float | None = None
    cancel: Callable[[], None] = lambda: None

    @classmethod
    def named(cls, wanted: str | None) -> "Call":
        """Take the id that the client wants, if it is well formed, or a new one."""
        return cls(wanted if wanted and REQUEST_ID.fullmatch(wanted) else uuid.uuid4().hex)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)


class LineFormatter(logging.Formatter):
    """Starts each line with time, level and request id. Text from a client cannot begin a line."""

    def format(self, record: logging.LogRecord) -> str:
        call = current_call.get()
        start = f"{self.formatTime(record)} {record.levelname} {call.id if call else '-'} "
        lines = [record.getMessage()]
        if record.exc_info:
            lines += self.formatException(record.exc_info).splitlines()
        return "\n".join(start + CONTROL_CHARACTERS.sub(_escape, line) for line in lines)


def _escape(found: re.Match) -> str:
    return ascii(found[0])[1:-1]


def set_up_logs() -> None:
    """Send the records of the server, of uvicorn and of transformers to standard error."""
    from transformers.utils import logging as transformers_logging

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    warnings.filterwarnings("always", category=VideoTruncatedWarning)  # for each request with a damaged video
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    logging.getLogger("pllava.serving").setLevel(logging.INFO)
