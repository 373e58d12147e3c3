"""The demo of `make demo`: nano captions a clip that it was not trained on, and answers all questions about it."""

import json
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.utils import logging

from .. import NANO
from ..hub_cards.cards.nano_card import MAIN
from .world import drawing, questions, scenes

CLIP = Path("demo.mp4")


def demo_clip(seed: int) -> tuple[scenes.Scene, list[dict[str, str]]]:
    """Return the seed's first scene with three shapes, so that there are shapes to tell apart, and its questions."""
    clips = (questions.clip(seed, index) for index in range(1000))
    return next(clip for clip in clips if len(clip[0].actors) == 3)


def demo(seed: int) -> None:
    """Render demo.mp4, and print nano's answers next to the correct ones."""
    scene, rows = demo_clip(seed)
    drawing.write_clip(CLIP, drawing.draw(scene))
    seconds = scenes.NUM_FRAMES / scenes.FPS
    print(f"Rendered {CLIP}: {seconds:.0f} seconds of a world of moving shapes. nano was not trained on this clip.\n")

    logging.disable_progress_bar()  # nano loads in a moment
    model, processor = AutoModelForImageTextToText.from_pretrained(NANO), AutoProcessor.from_pretrained(NANO)
    pipe = pipeline("video-text-to-text", model, processor=processor)
    answers = pipe([str(CLIP)] * len(rows), [row["question"] for row in rows], batch_size=len(rows))
    correct = 0
    for row, answer in reversed(list(zip(rows, answers, strict=True))):
        text = answer[0]["generated_text"].strip()
        correct += text == row["answer"]
        print(f"  {row['question']}\n    {text}" + ("" if text == row["answer"] else f"   (wrong: {row['answer']})"))
    print(f"\n{correct} of {len(rows)} answers are exactly right.")
    results = json.loads((Path(NANO) / "evaluation.json").read_text(encoding="utf-8"))
    mean, captions = (results["accuracy"][MAIN][kind] for kind in ("mean", "caption"))
    print(f"On {results['clips']} held-out clips: {mean:.0f} % of the answers, {captions:.0f} % of the captions.")
    print("Now ask your own questions:\n")
    print(f'  pllava chat {CLIP} "Where is the {scene.actors[0].name}?"')
    print(f"  pllava chat {CLIP}          # a conversation")
    print("  pllava chat your.mp4 --model path/or/hub-id   # with a checkpoint that was trained on real videos\n")
