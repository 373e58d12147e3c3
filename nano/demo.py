"""What `make demo` runs: a clip that the training never saw, its caption, and all that can be asked about it."""

import json
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.utils import logging

from .. import NANO
from ..hub_cards.nano_card import MAIN
from . import drawing, questions, world

CLIP = Path("demo.mp4")


def demo(seed: int) -> None:
    """Renders demo.mp4 and prints nano's answers beside the right ones."""
    # The first clip of this seed's world with three shapes, so that there is something to tell apart
    index = next(i for i in range(1000) if len(questions.clip(seed, i)[0].actors) == 3)
    scene, asked = questions.clip(seed, index)
    drawing.write_clip(CLIP, drawing.draw(scene))
    seconds = world.NUM_FRAMES / world.FPS
    print(f"Rendered {CLIP}: {seconds:.0f} seconds of a world of moving shapes, a clip that the training never saw.\n")

    logging.disable_progress_bar()  # nano loads in a moment
    model, processor = AutoModelForImageTextToText.from_pretrained(NANO), AutoProcessor.from_pretrained(NANO)
    pipe = pipeline("video-text-to-text", model, processor=processor)
    answers = pipe([str(CLIP)] * len(asked), [row["question"] for row in asked], batch_size=len(asked))
    right = 0
    for row, answer in reversed(list(zip(asked, answers, strict=True))):
        text = answer[0]["generated_text"].strip()
        right += text == row["answer"]
        print(f"  {row['question']}\n    {text}" + ("" if text == row["answer"] else f"   (wrong: {row['answer']})"))
    print(f"\n{right} of {len(asked)} answers are exactly right.")
    # One clip is no measure of a model
    results = json.loads((Path(NANO) / "evaluation.json").read_text(encoding="utf-8"))
    mean, captions = (results["accuracy"][MAIN][kind] for kind in ("mean", "caption"))
    print(f"On {results['clips']} held-out clips: {mean:.0f} % of the answers, {captions:.0f} % of the captions.")
    print("Now ask your own:\n")
    print(f'  pllava chat {CLIP} "Where is the {scene.actors[0].name}?"')
    print(f"  pllava chat {CLIP}          # a conversation")
    print("  pllava chat your.mp4 --model path/or/hub-id   # a checkpoint that has seen the real world\n")
