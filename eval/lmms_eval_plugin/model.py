"""PLLaVA as a model of lmms-eval: it is loaded from `--model_args`, and answers requests with texts."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm
from transformers import GenerationConfig, pipeline

from pllava import load_model, model_path
from pllava.loading import load_processor

SAMPLING = {"temperature", "top_p", "top_k"}


class LmmsEvalPllava(lmms):
    """
    Args:
        pretrained, adapter, alpha: As in [`load_model`]; "nano" is the checkpoint that ships with the package.
        device: By default the device that accelerate assigns to this process.
        dtype: By default the checkpoint's.
        batch_size: Requests answered together.
        loading: Further arguments of `from_pretrained`: `device_map=auto`, `attn_implementation=sdpa`, ...
    """

    is_simple = False  # lmms-eval then sends requests as chats

    def __init__(
        self,
        pretrained: str | None = None,
        adapter: str | None = None,
        alpha: float | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        **loading: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal():
            raise ValueError(f"batch_size must be a number; got {batch_size!r}")
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()  # lmms-eval uses it to gather from several processes
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        model = load_model(pretrained and model_path(pretrained), adapter, alpha, dtype=dtype, **loading)
        self.pipe = pipeline(
            "video-text-to-text",
            model if adapter is None else model.get_base_model(),  # pipelines do not accept a PEFT wrapper
            processor=load_processor(model),
            device=None if "device_map" in loading else device or self.accelerator.device,
        )
        self.device = self.pipe.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return answers in the order of the requests. Requests with the same generation arguments share batches."""
        groups = defaultdict(list)
        for index, request in enumerate(requests):
            groups[json.dumps(request.args[2], sort_keys=True)].append(index)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="Answering", unit="request", disable=self.rank > 0) as progress:
            for arguments, indices in groups.items():
                chats = (self._chat(requests[index]) for index in indices)
                for index, answer in zip(indices, self._answer(chats, json.loads(arguments)), strict=True):
                    answers[index] = answer
                    progress.update()
        return answers

    def _chat(self, request: Instance) -> list[dict[str, Any]]:
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return [{"role": message["role"], "content": _content(message["content"])} for message in messages]

    def _answer(self, chats: Iterator[list[dict[str, Any]]], arguments: dict[str, Any]) -> Iterator[str]:
        until = arguments.get("until") or []
        until = [until] if isinstance(until, str) else until
        options = {"batch_size": self.batch_size, "generate_kwargs": _generate_kwargs(arguments)}
        for output in self.pipe(chats, stop_sequence=until or None, **options):
            answer = output[0]["generated_text"]
            for stop in until:
                answer = answer.split(stop)[0]
            yield answer.strip()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("PLLaVA generates text: it runs only tasks of the output type generate_until")

    generate_until_multi_round = loglikelihood


def _content(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Convert the parts of a message for our processor: lmms-eval calls every source a "url"."""
    if unknown := {part["type"] for part in parts} - {"text", "image", "video"}:
        raise ValueError(f"PLLaVA takes videos, images and text; the task has {', '.join(sorted(unknown))}")
    return [part if part["type"] == "text" else {"type": part["type"], part["type"]: part["url"]} for part in parts]


def _generate_kwargs(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keep the arguments that `generate` knows; tasks have others for other models. A temperature implies sampling."""
    known = {key: value for key, value in arguments.items() if value is not None and key in vars(GenerationConfig())}
    sample = bool(known.get("do_sample", known.get("temperature"))) and known.get("temperature") != 0
    kept = {key: value for key, value in known.items() if sample or key not in SAMPLING}
    return {"max_new_tokens": 256, **kept, "do_sample": sample}
