"""Answers of nano in batches, as `pllava eval` does, and one by one, in a loop over `generate`."""

from functools import partial

import torch
from measuring import FLOOR, OURS, Contender, Job, Round, Setting, Step
from transformers import AutoProcessor

import pllava
from jobs.worlds import floor, rendered
from pllava.nano.world.rendering import read_questions

CLIPS = {"tiny": 24}
MORE_CLIPS = 60
BATCH = 16
PEER = "a loop over generate"


def prepare(name: str, setting: Setting) -> Step:
    from pllava.eval import load_benchmark, load_prompts, read_samples

    model = pllava.load_model(pllava.NANO, dtype=setting.torch_dtype, device_map=setting.device)
    processor = AutoProcessor.from_pretrained(pllava.NANO)
    folder = rendered(setting, CLIPS.get(setting.size, MORE_CLIPS))
    benchmark = load_benchmark("nano", load_prompts())
    samples = read_samples(benchmark, folder)

    def run() -> Round:
        if name == OURS:
            answers = in_batches(model, processor, benchmark, samples)
        else:
            answers = one_by_one(model, processor, read_questions(folder), benchmark.max_new_tokens)
        return {"result": "\n".join(answers)}

    return Step(run, once=True)


def in_batches(model, processor, benchmark, samples) -> list[str]:
    from pllava.eval import PLAIN, LocalModel
    from pllava.eval.models.answerer import Work

    answerer = LocalModel(model, processor, batch_size=BATCH, num_workers=1)
    batches = (answered for _, answered in answerer.answers(Work(benchmark, samples, [PLAIN])))
    answers = {sample.id: answer.texts[0] for answered in batches for sample, answer in answered}
    return [answers[sample.id] for sample in samples]


@torch.inference_mode()
def one_by_one(model, processor, rows: list[dict], max_new_tokens: int) -> list[str]:
    answers = []
    for row in rows:
        content = [{"type": "video", "path": row["video"]}, {"type": "text", "text": row["question"]}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        answers.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers


def cases(setting: Setting) -> dict[str, dict[str, Contender]]:
    clips = CLIPS.get(setting.size, MORE_CLIPS)
    contenders = {name: partial(prepare, name) for name in (OURS, PEER)}
    return {f"all questions about {clips} clips": {FLOOR: partial(floor, clips), **contenders}}


JOB = Job(
    "Evaluation: nano answers all questions about clips of its world, in batches of 16 with a worker that decodes, as "
    "`pllava eval` does. The limit (floor) decodes each clip once, shared by all cores.",
    "floor",
    cases,
    {PEER: "decodes the clip anew for every question"},
    {OURS: "The model takes most of the time; the floor only decodes these short clips."},
)
