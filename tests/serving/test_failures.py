"""What clients get when the server itself fails: an error in OpenAI's format, and no detail of the failure."""

import asyncio
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

import pllava
from pllava.media import MediaGate
from pllava.serving.app import build_app
from pllava.serving.chat import ChatHandler
from pllava.serving.logs import Call, LineFormatter, current_call
from pllava.serving.metrics import Metrics

QUESTION = [{"role": "user", "content": "What happens?"}]


@pytest.fixture
def handler(model: pllava.PllavaForConditionalGeneration, processor: pllava.PllavaProcessor) -> Iterator[ChatHandler]:
    with ThreadPoolExecutor(1) as decoders:
        yield ChatHandler("tiny", model, processor, MediaGate(), decoders, Metrics())


def ask(handler: ChatHandler, **options) -> object:
    """Ask a server in this process; return the answer, or the chunks of it."""

    async def run() -> object:
        transport = httpx.ASGITransport(build_app(handler, handler._metrics, 4), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as http:
            client = openai.AsyncOpenAI(base_url="http://test/v1", api_key="-", http_client=http, max_retries=0)
            reply = await client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=3, **options)
            return [chunk async for chunk in reply] if options.get("stream") else reply

    return asyncio.run(run())


def fail(*args, **options) -> None:
    raise RuntimeError("CUDA out of memory: the secret of this machine")


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails(
    handler: ChatHandler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(handler.model, "generate", fail)
        with pytest.raises(openai.APIError) as failed:
            ask(handler, stream=stream)
    assert "log says why" in f"{failed.value.message} {failed.value.body}" and "secret" not in str(failed.value.body)
    assert "the secret of this machine" in caplog.text
    assert ask(handler), "the thread of the model has ended"
    assert handler._metrics.under_way == handler._metrics.running == 0


def test_a_fault_of_the_server(handler: ChatHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "_prepare", fail)
    with pytest.raises(openai.InternalServerError) as failed:
        ask(handler)
    assert failed.value.body["message"] == "The server failed on this request; its log says why."
    assert failed.value.response.headers["x-request-id"]


def test_text_cannot_begin_a_line_of_the_log() -> None:
    text = "bad\n2026-01-01 00:00:00,000 INFO - forged\r\x1b[31m\u2028"
    try:
        raise ValueError(text)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed: %s", (text,), sys.exc_info())
    current_call.set(Call("id-1"))
    lines = LineFormatter().format(record).splitlines()
    assert len(lines) > 4 and all(" ERROR id-1 " in line for line in lines)
    assert lines[0].endswith(r"failed: bad\n2026-01-01 00:00:00,000 INFO - forged\r\x1b[31m\u2028")
    assert not any("\x1b" in line for line in lines)
