"""
Train the study's models, each once. Everything is in one folder, under hashes of what it was made from: a finished
result is found there, and a run that was killed resumes.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoProcessor, PreTrainedModel

from ...eval.benchmarks.samples import digest
from ...files import replace_file
from ...loading import load_model
from ...pooling_pllava import parse_pooling
from ...processing_pllava import PllavaProcessor
from ..training.models import BACKBONES, build_processor, load_for_video
from ..training.recipe import Recipe, VideoStage
from ..training.train import image_model_facts, train_image_model, train_video_stage, training_clips
from .from_nothing import train_from_nothing
from .settings import NOTHING, Run, Study

BACKBONE = BACKBONES["clip-llama"]


class Workshop:
    """
    The folder with the clips, the image models and the runs of a study. Each of them is made by one process at a time.

    Args:
        folder: May have the results of an earlier call.
        study, recipe: What is trained, and how.
    """

    def __init__(self, folder: Path, study: Study, recipe: Recipe):
        self.folder, self.study, self.recipe = folder, study, recipe

    def clips(self, seed: int) -> Path:
        """Return the folder of a seed's training clips, which are rendered unless they are there."""
        most_shapes = self.recipe.video_stage.most_shapes
        return training_clips(self.folder / "clips", self._clip_count(seed), most_shapes, seed)

    def _clip_count(self, seed: int) -> int:
        return max(run.clips for run in self.study.runs(seed))

    def video_stage(self, run: Run) -> VideoStage:
        """Return the recipe's stage 2 with the values of a run."""
        values = {name: getattr(run, name) for name in ("steps", "clips", "num_frames")}
        return replace(self.recipe.video_stage, pooling_shape=parse_pooling(run.pooling).shape, **values)

    def processor(self, run: Run) -> PllavaProcessor:
        """Return a run's processor. All of a study have the tokenizer of the first seed."""
        seed = self.study.seeds[0]
        return build_processor(self.clips(seed), BACKBONE["colours"], self.video_stage(run), seed)

    def image_model(self, run: Run) -> Path:
        """
        Return the folder of the image model from which a run starts, which is trained unless it is there. Runs of one
        size start from the same, as all of the paper's models of one size do.
        """
        folder = self.folder / "image-models" / digest(self._image_facts(run))
        if not (folder / "seconds.json").exists():
            width, seed = self.recipe.widths[run.size], self.study.seeds[0]
            train_image_model(folder, self.processor(run), BACKBONE, width, self.recipe, seed, workers=0)
        return folder

    def _image_facts(self, run: Run) -> list[Any]:
        """Return all that the weights of a run's image model depend on."""
        seed = self.study.seeds[0]
        return image_model_facts(self.recipe, self.recipe.widths[run.size], self._clip_count(seed), seed)

    def folder_of(self, run: Run) -> Path:
        """Return a run's folder, whose name is a hash of all that the weights depend on."""
        values = [*self._image_facts(run), asdict(run), asdict(self.video_stage(run))]
        return self.folder / "runs" / digest(values)

    def train(self, run: Run) -> None:
        """Train a run, unless that is done: its folder gets the model, or its adapter, and `run.json`."""
        folder, stage = self.folder_of(run), self.video_stage(run)
        if (folder / "run.json").exists():
            return
        processor, clips = self.processor(run), self.clips(run.seed)
        options = folder / "training", processor, clips, stage, run.seed
        if run.start == NOTHING:
            width = self.recipe.widths[run.size]
            model, seconds = train_from_nothing(BACKBONE, width, self.recipe, *options)
        else:
            features = self.folder / "features" / f"{run.seed}-{run.size}"
            start = load_for_video(self.image_model(run), stage)
            model, seconds = train_video_stage(start, *options, features, workers=0)
        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        replace_file(folder / "run.json", json.dumps({**asdict(run), "seconds": seconds}, indent=1) + "\n")

    def load(self, run: Run) -> tuple[PreTrainedModel | PeftModel, PllavaProcessor]:
        """Load a trained run, with its adapter unmerged if it has one, and its processor."""
        folder = self.folder_of(run) / "model"
        if run.start == NOTHING:
            model = load_model(folder, check=False)
        else:
            model = PeftModel.from_pretrained(load_for_video(self.image_model(run), self.video_stage(run)), folder)
        return model.eval(), AutoProcessor.from_pretrained(folder)
