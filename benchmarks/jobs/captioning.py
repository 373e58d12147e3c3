"""`pllava caption`, beside a loop over the pipeline. Both are programs of their own, started in the measured time."""

import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from measuring import FLOOR, OURS, Contender, Job, Round, Setting, Step

from jobs.worlds import floor, rendered

CLIPS = {"tiny": 32}
MORE_CLIPS = 512
PROMPT, MAX_NEW_TOKENS = "Describe the video.", 64
PEER = "a loop over the pipeline"
COMMAND = "from pllava_cli import app; app()"
LOOP = """
import json, sys
from pathlib import Path
import pllava
from transformers import pipeline

folder, out, device, dtype, prompt, max_new_tokens = sys.argv[1:]
pipe = pipeline("video-text-to-text", model=pllava.NANO, device=device, dtype=dtype, trust_remote_code=True)
with open(out, "w") as lines:
    for clip in sorted(Path(folder).iterdir()):
        answer = pipe(str(clip), text=prompt, max_new_tokens=int(max_new_tokens), do_sample=False)
        lines.write(json.dumps({"video": clip.name, "caption": answer[0]["generated_text"]}) + "\\n")
"""


def prepare(name: str, setting: Setting) -> Step:
    folder = rendered(setting, CLIPS.get(setting.size, MORE_CLIPS)) / "clips"

    def run() -> Round:
        with TemporaryDirectory() as directory:
            out = Path(directory) / "captions.jsonl"
            hidden = {"CUDA_VISIBLE_DEVICES": ""} if setting.device == "cpu" else {}
            environment = {**os.environ, **hidden}
            ended = subprocess.run(
                command(name, folder, out, setting), env=environment, capture_output=True, text=True
            )
            if ended.returncode:
                raise RuntimeError(ended.stderr.strip().splitlines()[-1])
            rows = map(json.loads, out.read_text(encoding="utf-8").splitlines())
            captions = {Path(row["video"]).name: row["caption"].strip() for row in rows}
        peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        return {"peak": peak, "result": json.dumps(captions, sort_keys=True)}

    return Step(run, once=True)


def command(name: str, folder: Path, out: Path, setting: Setting) -> list[str]:
    if name == PEER:
        options = [folder, out, setting.device, setting.dtype, PROMPT, MAX_NEW_TOKENS]
        return [sys.executable, "-c", LOOP, *map(str, options)]
    options = ["--model", "nano", "--prompt", PROMPT, "--max-new-tokens", str(MAX_NEW_TOKENS), "--out", str(out)]
    return [sys.executable, "-c", COMMAND, "caption", str(folder), *options, "--dtype", setting.dtype]


def cases(setting: Setting) -> dict[str, dict[str, Contender]]:
    clips = CLIPS.get(setting.size, MORE_CLIPS)
    contenders = {name: partial(prepare, name) for name in (OURS, PEER)}
    return {f"{clips} clips": {FLOOR: partial(floor, clips), **contenders}}


JOB = Job(
    "Captioning: `pllava caption` with nano, from the start of the program to the last caption. The limit (floor) "
    "decodes each clip once, shared by all cores.",
    "floor",
    cases,
    slow={OURS: "Starting the program and the model take most of the time; the floor only decodes the clips."},
)
