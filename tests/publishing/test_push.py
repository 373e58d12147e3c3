"""`pllava push` and what users of transformers do: one commit, with a card that the Hub accepts."""

import errno
import hashlib
import json
import shutil
import time
from decimal import Decimal
from pathlib import Path

import forked
import pytest
import torch
from hub_client import card_of, commits, error_of, online, run, try_run
from huggingface_hub import ModelCard
from layouts import IMAGE_BASE, write_official
from local_hub import Token, local_hub
from peft import get_peft_model
from safetensors import SafetensorError

import pllava
from pllava.adapters import lora_config
from pllava.hub_cards.publishing import staged
from pllava.model_card_pllava import is_generated
from pllava.nano.world.rendering import render


@pytest.fixture
def hub(tmp_path):
    with local_hub(tmp_path / "hub") as hub:
        (tmp_path / "hub").mkdir(exist_ok=True)
        yield hub


@pytest.fixture(scope="module")
def adapter(checkpoint, processor, tmp_path_factory):
    """An adapter whose base is the folder `checkpoint`."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    torch.manual_seed(0)
    model = get_peft_model(pllava.load_model(checkpoint), lora_config(r=4, lora_alpha=8))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def hashes(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.is_file()}


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


# --- pllava push -----------------------------------------------------------------------------------------------------


def test_a_model_arrives_in_one_commit_with_a_card(hub, checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "checkpoint-4").mkdir()
    before = hashes(folder)
    result = run(hub, tmp_path, "pllava", "push", folder, "me/mine")
    assert commits(hub) == ["Upload mine"]
    assert "left out: checkpoint-4, optimizer.pt" in result.stdout
    assert result.stdout.splitlines()[-1] == f"{hub}/me/mine"
    arrived = {file.name for file in (hub.folder / "me" / "mine").iterdir()}
    assert {"model.safetensors", "config.json", "processor_config.json", "modeling_pllava.py", "README.md"} <= arrived
    assert not arrived & {"optimizer.pt", "checkpoint-4"}
    card = card_of(hub, "me/mine")
    assert card.data.pipeline_tag == "video-text-to-text" and card.data.library_name == "transformers"
    assert 'model="me/mine"' in card.text and "![" in card.text and "method.png" in arrived
    assert hashes(folder) == before


def test_objects_are_pushed_together(hub, checkpoint, tmp_path):
    code = f"""
import pllava
from transformers import AutoProcessor
from pllava.hub_cards.publishing import push
model = pllava.load_model({checkpoint!r}, check=False)
push((model, AutoProcessor.from_pretrained({checkpoint!r})), "me/both")
"""
    run(hub, tmp_path, "-c", code)
    assert commits(hub) == ["Upload both"]
    arrived = {file.name for file in (hub.folder / "me" / "both").iterdir()}
    assert {"model.safetensors", "processor_config.json", "README.md"} <= arrived


def test_an_adapter_names_its_base_on_the_hub_by_its_commit(hub, checkpoint, adapter, tmp_path):
    refused = error_of(hub, tmp_path, "pllava", "push", adapter, "me/adapter")
    assert repr(str(checkpoint)) in refused and "--base-model" in refused
    run(hub, tmp_path, "pllava", "push", checkpoint, "me/base")
    before = hashes(adapter)
    run(hub, tmp_path, "pllava", "push", adapter, "me/adapter", "--base-model", "me/base", "--space")
    config = json.loads((hub.folder / "me" / "adapter" / "adapter_config.json").read_text())
    base = hub.find("models", "me/base")
    assert config["base_model_name_or_path"] == "me/base"
    assert config["revision"] == base.resolve("main")
    app = (hub.folder / "spaces" / "me" / "adapter" / "app.py").read_text()
    pushed = hub.find("models", "me/adapter").resolve("main")
    assert f'"me/base", "{base.resolve("main")}"' in app and f'"me/adapter@{pushed}"' in app
    card = card_of(hub, "me/adapter")
    assert card.data.base_model == "me/base" and card.data.base_model_relation == "adapter"
    assert str(checkpoint) not in str(card) and 'AutoPeftModelForCausalLM.from_pretrained("me/adapter"' in card.text
    assert "| alpha in `adapter_config.json` | 8 |" in card.text
    assert hashes(adapter) == before


def test_a_converted_model_names_the_checkpoint_on_the_hub(hub, tmp_path):
    write_official(hub.folder / "ermu2001" / "pllava-7b", shards=2)
    (hub.folder / "ermu2001" / "pllava-7b" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\nOfficial.\n")
    run(hub, tmp_path, "pllava", "convert", "ermu2001/pllava-7b", "pllava-7b", "--alpha", "2")
    origin = json.loads((tmp_path / "pllava-7b" / "config.json").read_text())["origin"]
    commit = hub.find("models", "ermu2001/pllava-7b").resolve("main")
    assert origin["kind"] == "official" and origin["alpha"] == 2 and origin["rank"] == 8
    assert origin["source"]["repo_id"] == "ermu2001/pllava-7b" and origin["source"]["revision"] == commit
    assert len(origin["source"]["fingerprint"]) == 16
    local = ModelCard.load(tmp_path / "pllava-7b" / "README.md")
    assert local.data.base_model == "ermu2001/pllava-7b" and local.data.license == "cc-by-nc-4.0"
    assert commit in local.text and "alpha = 2" in local.text
    run(hub, tmp_path, "pllava", "push", "pllava-7b", "me/pllava")
    assert card_of(hub, "me/pllava").data.base_model == "ermu2001/pllava-7b"


def test_a_merged_model_names_both_of_its_sources(hub, checkpoint, adapter, tmp_path):
    run(hub, tmp_path, "pllava", "push", checkpoint, "me/base")
    run(hub, tmp_path, "pllava", "push", adapter, "me/adapter", "--base-model", "me/base")
    run(hub, tmp_path, "pllava", "convert", "me/base", "merged", "--adapter", "me/adapter", "--alpha", "4")
    run(hub, tmp_path, "pllava", "push", "merged", "me/merged")
    card = card_of(hub, "me/merged")
    assert card.data.base_model == ["me/base", "me/adapter"]
    assert "merged at alpha = 4" in card.text
    assert json.loads((hub.folder / "me" / "merged" / "config.json").read_text())["origin"]["alpha"] == 4


def test_a_local_source_of_a_local_source_is_named(hub, tmp_path):
    """An adapter trained on a folder that was converted from the Hub: the card names the Hub's checkpoint."""
    write_official(hub.folder / "ermu2001" / "pllava-7b", shards=1)
    run(hub, tmp_path, "pllava", "convert", "ermu2001/pllava-7b", "local", "--keep-adapter")
    local = ModelCard.load(tmp_path / "local" / "adapter" / "README.md")
    assert local.data.base_model == "ermu2001/pllava-7b" and local.data.get("base_model_relation") is None
    assert "a folder on the machine of the training" in local.text
    run(hub, tmp_path, "pllava", "push", "local", "me/local")
    config = json.loads((hub.folder / "me" / "local" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/local"
    assert "`adapter`" in card_of(hub, "me/local").text


def test_what_was_made_from_an_image_model_names_it(hub, tmp_path):
    """The conversion, and what was trained on it in a local folder: an adapter, and a whole model."""
    shutil.copytree(IMAGE_BASE, hub.folder / "llava-hf" / "image")
    run(hub, tmp_path, "pllava", "convert", "llava-hf/image", "base")
    card = ModelCard.load(tmp_path / "base" / "README.md")
    assert card.data.base_model == "llava-hf/image" and "without training on videos" in card.text
    render(tmp_path / "world", 2, seed=9)
    options = ["--datasets", "world/questions.jsonl", "--model", "base", "--max_steps", "2", "--use_cpu", "true"]
    options += ["--bf16", "false", "--report_to", "none", "--per_device_train_batch_size", "1", "--max_length", "2900"]
    for name, use_peft in (("adapter", "true"), ("whole", "false")):
        run(hub, tmp_path, "pllava", "train", *options, "--output_dir", name, "--use_peft", use_peft)
        card = ModelCard.load(tmp_path / name / "README.md")
        assert card.data.base_model == "llava-hf/image" and card.data.get("base_model_relation") is None
        assert "a local model made from [llava-hf/image](https://huggingface.co/llava-hf/image)" in card.text
        assert "2 of 2," in card.text and "| questions |" in card.text
    run(hub, tmp_path, "pllava", "push", "whole", "me/whole")
    assert card_of(hub, "me/whole").data.base_model == "llava-hf/image"


@pytest.mark.parametrize(("where", "kept"), [("folder", "the folder"), ("hub", "me/mine")])
def test_a_card_that_was_edited_is_kept(hub, checkpoint, tmp_path, where, kept):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
    run(hub, tmp_path, "pllava", "push", folder, "me/mine")
    card = hub.folder / "me" / "mine" / "README.md"
    assert is_generated(card.read_text())
    edited = card.read_text().replace("## Limits", "## What I found\n\nMuch.\n\n## Limits")
    (card if where == "hub" else folder / "README.md").write_text(edited)
    result = run(hub, tmp_path, "pllava", "push", folder, "me/mine")
    assert f"the card in {kept} is kept" in result.stdout
    assert "What I found" in card.read_text()


def test_an_empty_card_is_replaced(hub, checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
    (folder / "README.md").write_text("# Model Card for Model ID\n\n<!-- Provide a quick summary -->\n")
    run(hub, tmp_path, "pllava", "push", folder, "me/mine")
    assert "Model Card for Model ID" not in card_of(hub, "me/mine").text


def test_invalid_metadata_are_refused_before_weights_are_uploaded(hub, checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
    (folder / "README.md").write_text("---\nbase_model: ./pllava-base\n---\nMine.\n")
    message = error_of(hub, tmp_path, "pllava", "push", folder, "me/mine")
    assert '"base_model"' in message and "./pllava-base" in message
    assert not commits(hub) and not hub.uploaded_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "safetensors only"),
        (lambda folder: (folder / "processor_config.json").unlink(), "save the processor there"),
        (lambda folder: [file.unlink() for file in folder.glob("*config.json")], "no config.json"),
        (lambda folder: (folder / "training_summary.json").write_text("{}"), "not the summary of a training"),
        (shutil.rmtree, "no config.json"),
    ],
    ids=["pickle", "no processor", "no configs", "another summary", "no folder"],
)
def test_an_incomplete_folder_is_refused(hub, checkpoint, tmp_path, change, message):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
    change(folder)
    assert message in error_of(hub, tmp_path, "pllava", "push", folder, "me/mine")
    assert not commits(hub)


# --- branches, pull requests, rights, failures -----------------------------------------------------------------------


def test_branches_and_pull_requests(hub, checkpoint, tmp_path):
    run(hub, tmp_path, "pllava", "push", checkpoint, "me/mine")
    main = hub.find("models", "me/mine").resolve("main")
    (copy := Path(shutil.copytree(checkpoint, tmp_path / "mine")) / "more.txt").write_text("more")
    run(hub, tmp_path, "pllava", "push", copy.parent, "me/mine", "--revision", "v2")
    pull_request = run(hub, tmp_path, "pllava", "push", copy.parent, "me/mine", "--create-pr").stdout.splitlines()[-1]
    repository = hub.find("models", "me/mine")
    assert repository.resolve("main") == main != repository.resolve("v2")
    assert pull_request == f"{hub}/me/mine/discussions/1" and repository.resolve("refs/pr/1")
    both = error_of(hub, tmp_path, "pllava", "push", copy.parent, "me/mine", "--create-pr", "--revision", "v2")
    assert "leave --revision" in both


def test_private_is_honoured_or_refused(hub, checkpoint, tmp_path):
    run(hub, tmp_path, "pllava", "push", checkpoint, "me/hidden", "--private")
    assert hub.find("models", "me/hidden").private
    run(hub, tmp_path, "pllava", "push", checkpoint, "me/open")
    message = error_of(hub, tmp_path, "pllava", "push", checkpoint, "me/open", "--private")
    assert "me/open exists and is public" in message and len(commits(hub)) == 2


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_wrong", "me/mine", "log in with `hf auth login`"),
        ("hf_read", "me/mine", "your token may not do this"),
        ("hf_x", "other/mine", "your token may not do this"),
    ],
    ids=["wrong token", "read-only token", "another user's name"],
)
def test_a_refusal_is_one_clear_line(checkpoint, tmp_path, token, repo_id, message):
    (tmp_path / "hub").mkdir()
    folder = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
    before = hashes(folder)
    tokens = {"hf_x": Token("me"), "hf_read": Token("me", read_only=True)}
    with local_hub(tmp_path / "hub", tokens=tokens) as hub:
        error = error_of(hub, tmp_path, "pllava", "push", folder, repo_id, token=token)
        assert message in error and repo_id in error, error
        assert not commits(hub)
    assert hashes(folder) == before


def test_a_missing_base_is_named(hub, adapter, tmp_path):
    error = error_of(hub, tmp_path, "pllava", "push", adapter, "me/adapter", "--base-model", "me/nothing")
    assert "me/nothing" in error and "there is no such repository" in error


def test_a_used_up_quota_is_named(checkpoint, tmp_path):
    (tmp_path / "hub").mkdir()
    with local_hub(tmp_path / "hub", quota=10_000) as hub:
        assert "storage limit reached" in error_of(hub, tmp_path, "pllava", "push", checkpoint, "me/mine")


def test_an_upload_that_was_cut_goes_on(hub, checkpoint, tmp_path):
    """Of the files that were uploaded none is sent again, when a push that was killed is run again."""
    pllava.load_model(checkpoint, check=False).save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    pllava.PllavaProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "sharded")
    before = hashes(tmp_path / "sharded")
    sizes = {before[file.name]: file.stat().st_size for file in (tmp_path / "sharded").glob("*.safetensors")}
    *others, last = sizes
    assert len(others) > 3
    hub.faults.delay(60, path=last)
    arguments = ["pllava", "push", "sharded", "me/mine"]
    process = forked.start(*arguments, cwd=tmp_path, **online(hub, tmp_path / "home"))
    wait_until(lambda: all(hub.uploaded_bytes.get(digest) == sizes[digest] for digest in others))
    process.kill()
    assert not commits(hub)
    hub.faults.clear()
    run(hub, tmp_path, *arguments)
    sent = sum(hub.uploaded_bytes[digest] for digest in sizes)
    assert sent - sum(sizes.values()) <= sizes[last], "only the file that was cut is sent again"
    assert commits(hub) == ["Upload mine"] and hashes(tmp_path / "sharded") == before


def test_a_file_that_the_hub_refuses_is_named(hub, checkpoint, tmp_path):
    hub.faults.answer(403, path=hashes(Path(checkpoint))["model.safetensors"], method="PUT", times=10)
    error = error_of(hub, tmp_path, "pllava", "push", checkpoint, "me/mine")
    assert "model.safetensors" in error and "the Hub replied 403" in error and not commits(hub)


def test_busy_servers_are_asked_again(hub, checkpoint, tmp_path):
    for status in (429, 500, 503):
        hub.faults.answer(status, path="preupload|lfs/objects/batch", times=1, retry_after=0)
    run(hub, tmp_path, "pllava", "push", checkpoint, "me/mine")
    assert commits(hub) == ["Upload mine"]


def test_a_lost_connection_is_named(hub, checkpoint, tmp_path):
    hub.faults.drop(times=1000)
    error = error_of(hub, tmp_path, "pllava", "push", checkpoint, "me/mine")
    assert f"{hub} cannot be reached" in error and "run the same command again" in error and not commits(hub)


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_is_named(checkpoint, monkeypatch, failure):
    def write(*args):
        raise failure

    monkeypatch.setattr("pllava.hub_cards.publishing.staging.write", write)
    with pytest.raises(OSError, match="The disk is full: nothing was published. Free some space in /"):
        with staged(checkpoint):
            pass


def test_a_server_that_fails_for_good_is_named(hub, checkpoint, tmp_path):
    hub.faults.answer(500, path="/commit/", times=1000)
    assert "the Hub replied 500" in error_of(hub, tmp_path, "pllava", "push", checkpoint, "me/mine")
    assert not commits(hub)


def test_two_pushes_at_once_lose_no_commit(hub, checkpoint, tmp_path):
    copies = []
    for name in ("one", "two"):
        copies.append(Path(shutil.copytree(checkpoint, tmp_path / name)))
        (copies[-1] / f"{name}.txt").write_text(name)
    processes = [
        forked.start("pllava", "push", copy, "me/mine", cwd=tmp_path, **online(hub, tmp_path / f"home-{copy.name}"))
        for copy in copies
    ]
    assert [forked.wait(process) for process in processes] == [0, 0]
    assert commits(hub) == ["Upload mine"] * 2
    arrived = {file.name for file in (hub.folder / "me" / "mine").iterdir()}
    assert {"one.txt", "two.txt", "model.safetensors"} <= arrived


# --- what belongs to a model -----------------------------------------------------------------------------------------


def test_a_space_of_the_pushed_commit(hub, checkpoint, tmp_path):
    result = run(hub, tmp_path, "pllava", "push", checkpoint, "me/mine", "--space")
    commit = hub.find("models", "me/mine").resolve("main")
    app = (hub.folder / "spaces" / "me" / "mine" / "app.py").read_text()
    assert f'"me/mine", "{commit}"' in app
    assert result.stdout.splitlines()[-2:] == [f"{hub}/me/mine", f"{hub}/spaces/me/mine"]


def test_a_collection_has_each_repository_once(hub, checkpoint, tmp_path):
    code = "from huggingface_hub import HfApi; print(HfApi().create_collection('Videos', namespace='me').slug)"
    slug = run(hub, tmp_path, "-c", code).stdout.strip()
    for _ in range(2):
        run(hub, tmp_path, "pllava", "push", checkpoint, "me/mine", "--space", "--collection", slug)
    (collection,) = hub.read_collections().values()
    assert sorted((item["type"], item["id"]) for item in collection["items"]) == [
        ("model", "me/mine"),
        ("space", "me/mine"),
    ]
    error = error_of(hub, tmp_path, "pllava", "push", checkpoint, "me/mine", "--collection", "me/none-123")
    assert "me/none-123" in error


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of nano, with controls."""
    folder = tmp_path_factory.mktemp("results")
    render(folder / "world", 2, seed=9)
    arguments = ["pllava", "eval", "nano", "--data", "world", "--out", "results", "--controls"]
    evaluated = forked.run(*arguments, cwd=folder)
    assert evaluated.returncode == 0, evaluated.stderr
    return folder / "results"


def test_results_arrive_with_the_weights(hub, results, tmp_path):
    result = run(hub, tmp_path, "pllava", "push", "nano", "me/nano", "--results", results)
    assert commits(hub) == ["Results of pllava eval", "Upload nano"]
    assert result.stdout.splitlines()[-2:] == [f"{hub}/me/nano", f"{hub}/datasets/me/nano-results"]
    accuracy = json.loads((results / "nano" / "metrics.json").read_text())["accuracy"]
    card = card_of(hub, "me/nano")
    measured = next(each for each in card.data.eval_results if each.source_name == "predictions")
    assert measured.metric_value == float(Decimal(repr(accuracy)).scaleb(2))
    assert "me/nano-results" in measured.source_url and "## Results" in card.text
    assert is_generated((hub.folder / "me" / "nano" / "README.md").read_text())


def test_pushing_weights_again_keeps_the_results(hub, results, tmp_path):
    run(hub, tmp_path, "pllava", "push", "nano", "me/nano", "--results", results)
    with_results = (hub.folder / "me" / "nano" / "README.md").read_text()
    again = run(hub, tmp_path, "pllava", "push", "nano", "me/nano")
    assert "kept" not in again.stdout
    assert (hub.folder / "me" / "nano" / "README.md").read_text() == with_results


def test_an_adapter_has_the_best_alpha_of_a_sweep(hub, tmp_path):
    render(tmp_path / "world", 2, seed=9)
    run(hub, tmp_path, "pllava", "push", "nano", "me/nano")
    torch.manual_seed(0)
    model = get_peft_model(pllava.load_model(pllava.NANO), lora_config(r=4, lora_alpha=8))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(tmp_path / "adapter")
    pllava.PllavaProcessor.from_pretrained(pllava.NANO).save_pretrained(tmp_path / "adapter")
    arguments = ["--data", "world", "--adapter", "adapter", "--sweep", "alpha=0,32", "--out", "results"]
    run(hub, tmp_path, "pllava", "eval", *arguments)
    run(hub, tmp_path, "pllava", "push", "adapter", "me/tuned", "--base-model", "me/nano", "--results", "results")
    scores = {
        alpha: json.loads((tmp_path / "results" / "nano" / f"alpha={alpha}" / "metrics.json").read_text())["accuracy"]
        for alpha in (0, 32)
    }
    best = max(scores, key=scores.get)
    alphas = json.loads((hub.folder / "me" / "tuned" / "alpha.json").read_text())
    (recommended,) = alphas["recommended"].values()
    assert recommended == best
    assert (
        f"| best alpha of a sweep on {next(iter(alphas['recommended']))} | {best} |" in card_of(hub, "me/tuned").text
    )


# --- pllava card -----------------------------------------------------------------------------------------------------


def test_the_card_is_printed_as_it_would_be_published(hub, checkpoint, tmp_path):
    printed = run(hub, tmp_path, "pllava", "card", checkpoint, "--repo-id", "me/mine").stdout
    run(hub, tmp_path, "pllava", "push", checkpoint, "me/mine")
    assert printed.strip() == (hub.folder / "me" / "mine" / "README.md").read_text().strip()


def test_a_card_is_checked(hub, checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
    valid = run(hub, tmp_path, "pllava", "card", folder, "--check").stdout
    assert valid.splitlines()[-1] == "metadata, links and snippets are valid"
    (folder / "README.md").write_text(
        "---\nlicense: mine\n---\n[a](lost.png) [b](https://huggingface.co/me/lost) [c](http://plain.org) [d](#d)\n"
        "```python\nprint('\n```\n```bash\npllava chat 'a\n```\n"
    )
    result = try_run(hub, tmp_path, "pllava", "card", folder, "--check")
    problems = result.stdout.splitlines()
    assert result.returncode == 1
    assert [line.split(":")[0] for line in problems] == ["metadata", "link", "link", "link", "snippet", "snippet"]
    for problem, part in zip(
        problems, ("license", "lost.png", "me/lost", "plain.org", "print", "pllava"), strict=True
    ):
        assert part in problem
