"""Many clients at once, for minutes, and the end of the server in the middle of it."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from model_server import ModelServer, World, data_uri, model_server, text_part, user, video_part

CLIENTS, SECONDS = 16, 120
MEGABYTE = 2**20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sixteen_clients_for_two_minutes(world: World, web: str, nano_says: Callable, tmp_path: Path) -> None:
    """Each client asks about its own clip, in each way; every answer is that clip's own. Then the server ends."""
    asked = [[user({"type": "video", "path": str(clip)}, text_part(world.questions[0]))] for clip in world.clips]
    expected = [nano_says(messages) for messages in asked]
    assert len(set(expected)) == len(world.clips) == CLIENTS, "the answers do not tell the clips apart"
    allowed = ["--allowed-local-media-path", str(world.folder), "--allowed-media-domains", web]
    with model_server(tmp_path, "nano", *allowed) as server:
        clients = [Client(server, world, web, number, expected[number]) for number in range(CLIENTS)]
        memory, began = [], time.monotonic()
        while (passed := time.monotonic() - began) < SECONDS:
            memory.append((passed, server.memory))
            time.sleep(2)
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(timeout=60)
        for client in clients:
            client.thread.join()
        log = server.log

    outcomes = sum((client.outcomes for client in clients), Counter())
    early = max(size for passed, size in memory if 10 <= passed < SECONDS / 2)
    late = max(size for passed, size in memory if passed >= SECONDS / 2)
    print(f"\n{CLIENTS} clients, {SECONDS} s: {dict(outcomes)}; {outcomes['right'] / SECONDS:.1f} answers a second")
    print(
        f"resident memory: {memory[0][1] / MEGABYTE:.0f} MiB at the start, at most {early / MEGABYTE:.0f} MiB in the"
    )
    print(f"first half, {late / MEGABYTE:.0f} MiB in the second, {memory[-1][1] / MEGABYTE:.0f} MiB at the end")
    print(log.splitlines()[-1], "exit code", code)
    assert code == 0
    assert not outcomes["wrong"] and not outcomes["error"] and not outcomes["cut"], [each.faults for each in clients]
    assert all(client.outcomes["right"] > 5 for client in clients)
    assert outcomes["refused"] <= 2 * CLIENTS  # after the signal nobody gets in, and all that were in got their answer
    assert late < early + 32 * MEGABYTE
    assert "Traceback" not in log and " ERROR " not in log


class Client:
    """Asks about one clip until the server refuses the connection."""

    def __init__(self, server: ModelServer, world: World, web: str, number: int, expected: str):
        self.outcomes, self.faults, self._expected = Counter(), [], expected
        clip = world.clips[number]
        self._urls = [data_uri(clip), str(clip), f"http://{web}/clips/{clip.name}"]
        self._question = text_part(world.questions[0])
        self._rng = random.Random(number)
        self._chat = server.client().chat.completions
        self._process = server.process
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                answer = self._ask()
            except openai.APIConnectionError as error:
                # Before anything was sent: the server listens no more. Otherwise an answer was cut
                kind = "refused" if "refused" in repr(error.__cause__).lower() else "cut"
                self.outcomes[kind] += 1
                self.faults += [repr(error.__cause__)] if kind == "cut" else []
                return
            except openai.OpenAIError as error:
                self.outcomes["error"] += 1
                self.faults.append(repr(error))
                continue
            self.outcomes["right" if answer == self._expected else "wrong"] += 1

    def _ask(self) -> str:
        messages = [user(video_part(self._rng.choice(self._urls)), self._question)]
        if self._rng.random() < 0.5:
            return self._chat.create(model="nano", messages=messages, temperature=0).choices[0].message.content
        chunks = self._chat.create(model="nano", messages=messages, temperature=0, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
