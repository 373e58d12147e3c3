"""
Merging an adapter into a 2 GB model in bfloat16: `pllava convert` compared with PEFT's merge_and_unload and
save_pretrained, in seconds and growth of memory. Each runs in a separate process.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = 3
MODEL = """
import sys
import torch
from peft import get_peft_model
from transformers import CLIPVisionConfig, LlamaConfig
import pllava

text = LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=18, num_attention_heads=16)
config = pllava.PllavaConfig(text_config=text, vision_config=CLIPVisionConfig(), pooling_shape=(16, 3, 3))
torch.set_default_dtype(torch.bfloat16)
model = pllava.PllavaForConditionalGeneration(config)
model.save_pretrained(sys.argv[1], max_shard_size="500MB")
adapted = get_peft_model(model, pllava.lora_config())
torch.nn.init.normal_(next(p for name, p in adapted.named_parameters() if "lora_B" in name))
adapted.save_pretrained(sys.argv[2])
"""
CONTENDERS = {
    "pllava convert": """
from pllava.convert import convert

def merge(model, adapter, out):
    convert(model, out, adapter=adapter)
""",
    "peft, merge_and_unload": """
from peft import PeftModel
from transformers import AutoModelForImageTextToText

def merge(model, adapter, out):
    loaded = AutoModelForImageTextToText.from_pretrained(model)
    PeftModel.from_pretrained(loaded, adapter).merge_and_unload().save_pretrained(out, max_shard_size="500MB")
""",
}
MEASURED = r"""
import re, sys, time
import peft, torch, pllava
import transformers.models.clip.modeling_clip, transformers.models.llama.modeling_llama

def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1e6

before, start = peak(), time.perf_counter()
merge(*sys.argv[1:])
print("measured", time.perf_counter() - start, peak() - before)
"""


def measure(code: str, directory: Path) -> tuple[float, float]:
    """Return seconds and growth of the peak memory in GB."""
    out = directory / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", code + MEASURED, directory / "model", directory / "adapter", out]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, growth = re.search(r"measured (\S+) (\S+)", run.stdout).groups()
    return float(seconds), float(growth)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        subprocess.run([sys.executable, "-c", MODEL, directory / "model", directory / "adapter"], check=True)
        # nano's processor: its tokens fit into any vocabulary
        import pllava

        for file in Path(pllava.NANO).iterdir():
            if file.name.startswith(("tokenizer", "processor", "chat_template")) and file.suffix != ".py":
                shutil.copy(file, directory / "model")
        shards = [file.stat().st_size for file in (directory / "model").glob("*.safetensors")]
        print(f"a model of {sum(shards) / 1e9:.2f} GB in shards of at most {max(shards) / 1e9:.2f} GB")
        figures = {contender: [] for contender in CONTENDERS}
        for _ in range(RUNS):
            for contender, code in CONTENDERS.items():
                figures[contender].append(measure(code, directory))
        medians = {
            name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in figures.items()
        }
        *_, peer = medians.values()
        for contender, (seconds, growth) in medians.items():
            print(
                f"{contender}: {seconds:.1f} s, {growth:.2f} GB more memory; ratio to PEFT: "
                f"{seconds / peer[0]:.2f} and {growth / peer[1]:.2f} (median of {RUNS})"
            )


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    main()
