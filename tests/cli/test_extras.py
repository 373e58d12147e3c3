"""After a plain `pip install pllava`: what needs no extra works, what needs one says which, in one line."""

import json
import subprocess
import sys

from layouts import IMAGE_BASE

HIDDEN = ["bitsandbytes", "datasets", "evaluate", "matplotlib", "openai", "pycocoevalcap", "rouge_score", "torchao"]
HIDDEN += ["gradio", "pyarrow", "ray", "tensorboard", "trl"]

# Runs commands one after the other where modules cannot be found; prints their exit codes and what they said is wrong.
RUN = """
import contextlib, io, json, runpy, sys

hidden, commands = json.loads(sys.argv[1])


class Finder:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *args):
        return None if name.split(".")[0] in hidden else self.finder.find_spec(name, *args)


sys.meta_path[:] = map(Finder, sys.meta_path)
results = []
for module, *arguments in commands:
    script = module == "pllava"
    # `python -m` has this for the program's name while it looks for it
    sys.argv, said = ["pllava" if script else "-m", *arguments], io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            if script:
                from pllava_cli import app

                app()
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            results.append([isinstance(end.code, str) or end.code or 0, said.getvalue()])
        except BaseException as error:
            results.append([repr(error), said.getvalue()])
print(json.dumps(results))
"""


WORK = [
    ["pllava.nano", "demo"],
    ["pllava.nano", "render", "world", "--clips", "1"],
    ["pllava", "chat", "demo.mp4", "What moves?", "--max-new-tokens", "2"],
    ["pllava", "caption", "world", "--out", "captions.jsonl", "--max-new-tokens", "2"],
    ["pllava", "convert", str(IMAGE_BASE), "converted"],
]
NEED = [
    ("demo", ["pllava", "demo"]),
    ("eval", ["pllava", "eval", "nano"]),
    ("eval", ["pllava.eval", "nano"]),
    ("eval", ["pllava.nano", "evaluate", "--clips", "1"]),
    ("train", ["pllava", "train", "--config", "train/recipes/nano.yaml"]),
    ("train", ["pllava", "data", "inspect", "rows.jsonl"]),
    ("train", ["pllava", "data", "push", "rows.jsonl", "me/rows"]),
    ("train", ["pllava", "caption", "demo.mp4", "--out", "pushed.jsonl", "--push", "me/captions"]),
    ("ray", ["pllava", "caption", "demo.mp4", "--out", "cluster.jsonl", "--ray", "auto"]),
    ("train", ["pllava.train", "--config", "train/recipes/nano.yaml"]),
    ("train", ["pllava.train.dpo", "--config", "train/recipes/pllava-7b-dpo.yaml"]),
    ("train", ["pllava.nano", "train"]),
]


def test_what_needs_no_extra_works_and_what_needs_one_names_it_in_one_line(tmp_path):
    commands = [*WORK, *(command for _, command in NEED)]
    command = [sys.executable, "-c", RUN, json.dumps([HIDDEN, commands])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [code for code, _ in results[: len(WORK)]] == [0] * len(WORK), results
    written = {"demo.mp4", "world", "captions.jsonl", "captions.jsonl.lock", "captions.report.json", "converted"}
    assert {file.name for file in tmp_path.iterdir()} == written
    for (extra, command), (code, said) in zip(NEED, results[len(WORK) :], strict=True):
        assert code == 1, (command, code, said)
        assert said.startswith("Error: No module named ") and said.count("\n") == 1, (command, said)
        assert f"pip install 'pllava[{extra}]'" in said, (command, said)
