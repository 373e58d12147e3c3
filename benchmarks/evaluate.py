"""
Compare the speed of answering questions in batches, as `pllava eval` does, and one by one, in a loop over `generate`.
The model is nano, the clips are synthetic.

    python benchmarks/evaluate.py --clips 60
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import typer
from tqdm import tqdm
from transformers import AutoProcessor

import pllava
from pllava.eval import PLAIN, LocalModel, load_benchmark, load_prompts, read_samples
from pllava.eval.models.answerer import Work
from pllava.nano.data import read_questions, render


@torch.inference_mode()
def one_by_one(model, processor, rows: list[dict], max_new_tokens: int) -> tuple[list[str], float, float]:
    """Return the answers, and the seconds that decoding and the model took."""
    answers, decode, generate = [], 0.0, 0.0
    for row in tqdm(rows, desc="one by one", unit="question"):
        content = [{"type": "video", "path": row["video"]}, {"type": "text", "text": row["question"]}]
        began = time.perf_counter()
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        decoded = time.perf_counter()
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        generate += time.perf_counter() - decoded
        decode += decoded - began
        answers.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers, decode, generate


def main(clips: int = 60, batch_size: int = 16) -> None:
    model, processor = pllava.load_model(pllava.NANO), AutoProcessor.from_pretrained(pllava.NANO)
    benchmark = load_benchmark("nano", load_prompts())
    with TemporaryDirectory() as folder:
        render(Path(folder), clips, seed=1)
        rows = read_questions(Path(folder))
        samples = read_samples(benchmark, folder)
        began = time.perf_counter()
        alone, decode, generate = one_by_one(model, processor, rows, benchmark.max_new_tokens)
        seconds_alone = time.perf_counter() - began
        answerer = LocalModel(model, processor, batch_size=batch_size, num_workers=1)
        began = time.perf_counter()
        answers = {
            sample.id: answer.texts[0]
            for _, answered in answerer.answers(Work(benchmark, samples, [PLAIN]))
            for sample, answer in answered
        }
        seconds = time.perf_counter() - began
    together = [answers[sample.id] for sample in samples]
    same = sum(one == other for one, other in zip(alone, together, strict=True))
    took = answerer.timing
    print(f"{len(rows)} questions about {clips} clips, {torch.get_num_threads()} threads")
    print(f"one by one    {seconds_alone:6.1f} s: decoding {decode:.1f} s, model {generate:.1f} s")
    print(
        f"batches of {batch_size} {seconds:6.1f} s: decoding {took.decode_seconds:.1f} s in a worker, "
        f"waiting for it {took.waited_for_clips_seconds:.1f} s, model {took.model_seconds:.1f} s"
    )
    print(f"{seconds_alone / seconds:.1f} times as fast; {same} of {len(rows)} answers are the same")


if __name__ == "__main__":
    typer.run(main)
