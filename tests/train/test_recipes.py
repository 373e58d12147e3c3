"""The recipes: they parse, and have the paper's values."""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from trl import DPOConfig, SFTConfig

import pllava
from pllava.data.sources import read_sources
from pllava.train.arguments import TrainingParser

TRAIN = Path(pllava.__file__).parent / "train"
RECIPES = sorted((TRAIN / "recipes").glob("*.yaml"))


def parse(recipe, *argv):
    parser = TrainingParser(DPOConfig if recipe.stem.endswith("dpo") else SFTConfig)
    return parser.parse_args_and_config(["--config", str(recipe), "--bf16", "false", "--use_cpu", "true", *argv])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses_and_the_command_line_overrides_it(recipe):
    model, data, _, args = parse(recipe, "--learning_rate", "0.5", "--lora_r", "7", "--datasets", "a.jsonl", "b.jsonl")
    assert args.learning_rate == 0.5 and model.lora_r == 7 and data.datasets == ["a.jsonl", "b.jsonl"]


TRL_NAMES = {"model": "model_name_or_path", "adapter": "adapter_name_or_path", "revision": "model_revision"}


@pytest.mark.parametrize(("name", "trl_name"), TRL_NAMES.items())
def test_an_option_has_our_name_and_trls(name, trl_name, tmp_path, capsys):
    """On the command line and in a recipe; the command line overrides the recipe under either name."""
    recipe = tmp_path / "recipe.yaml"
    for in_recipe in (name, trl_name):
        recipe.write_text(f"output_dir: out\n{in_recipe}: a\n")
        assert getattr(parse(recipe)[0], trl_name) == "a"
        for given in (name, trl_name):
            assert getattr(parse(recipe, f"--{given}", "b")[0], trl_name) == "b"
    assert getattr(parse(recipe, f"--{name}", "b", f"--{trl_name}", "b")[0], trl_name) == "b"
    with pytest.raises(SystemExit):
        parse(recipe, f"--{name}", "b", f"--{trl_name}", "c")
    assert "these are names of one option; got 'b' and 'c'" in capsys.readouterr().err
    recipe.write_text(f"output_dir: out\n{name}: a\n{trl_name}: b\n")
    with pytest.raises(ValueError, match=f"The recipe has {name}: a and {trl_name}: b; remove one"):
        parse(recipe)


@pytest.mark.parametrize("size", ["7b", "13b", "34b"])
def test_recipes_have_the_papers_hyperparameters(size):
    recipe = TRAIN / "recipes" / f"pllava-{size}.yaml"
    model, data, _, args = parse(recipe)
    assert (model.lora_r, model.lora_alpha, model.lora_dropout) == (128, 32, 0.05)
    assert model.lora_target_modules == ["q_proj", "v_proj"] and model.use_peft
    assert (args.learning_rate, args.weight_decay, args.adam_beta1, args.adam_beta2) == (2e-5, 0.02, 0.9, 0.999)
    assert args.lr_scheduler_type == "cosine" and args.warmup_steps == 0.03 and args.gradient_checkpointing
    assert (args.max_steps, args.max_length, data.sampling) == (6250, 2304 + 512, "random")
    text = recipe.read_text(encoding="utf-8")
    launched = load_config_from_file(str(TRAIN.parent / re.search(r"--config_file (\S+)", text)[1])).num_processes
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * launched == 128
    assert f"On {launched} GPUs" in text
    assert f"llava-v1.6-{'34b' if size == '34b' else f'vicuna-{size}'}-hf" in text


def test_videochat2_has_all_its_sources():
    sources = read_sources(["data/videochat2_it.yaml"], data_dir="data")
    assert len({source.name for source in sources}) == 16
    assert all(source.license and source.media.startswith("data/videos/") for source in sources)
    groups = {Path(source.path).relative_to("data/video").parts[0] for source in sources}
    assert groups == {"caption", "classification", "conversation", "reasoning", "vqa"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_files_named_in_a_recipe_exist(recipe):
    text = recipe.read_text(encoding="utf-8")
    named = [word for word in text.split() if word.startswith("train/") and word.endswith(".yaml")]
    assert named and all((TRAIN.parent / word).exists() for word in named)
    assert yaml.safe_load(text)["report_to"] == "tensorboard"


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"path": "a", "weigth": 2}, "weigth"), ({"name": "a"}, "has a `path`")],
)
def test_source_with_an_unknown_field_is_an_error(entry, message):
    with pytest.raises(ValueError, match=message):
        read_sources([entry])
