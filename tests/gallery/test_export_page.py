"""Galleries of real results in a browser: from disk and from the local server, clips play and frames are there."""

import threading

import pytest
from browser import screenshot
from gallery_export import REASON
from playwright.sync_api import expect

from pllava.gallery.exporting import export_gallery
from pllava.gallery.local_server import GalleryServer

# Plays for a moment; returns where it began, whether it went on, and the length in seconds
PLAY = """async (video) => {
    video.muted = true;
    while (video.readyState < 2) await new Promise((resolve) => setTimeout(resolve, 50));
    const began = video.currentTime;
    await video.play();
    while (video.currentTime < began + 0.2) await new Promise((resolve) => setTimeout(resolve, 50));
    return [began, video.currentSrc, video.duration];
}"""


@pytest.fixture(scope="module", params=["from disk", "served"])
def address(request, built_page, evaluated, tmp_path_factory):
    results = [evaluated.nano, evaluated.nano / "nano" / "reversed", evaluated.published]
    if request.param == "from disk":
        folder = tmp_path_factory.mktemp("gallery")
        export_gallery(results, folder, clips=True)
        yield (folder / "index.html").as_uri()
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        with GalleryServer(results) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield server.address
            server.shutdown()


def test_runs_are_compared_and_a_clip_plays(page, address, tmp_path):
    page.goto(address)
    expect(page.get_by_role("heading", name="Accuracy (%) by task")).to_be_visible()
    expect(page.locator("header")).to_contain_text("nano, frames reversed")
    screenshot(page, "gallery-real-results", tmp_path)
    page.locator(".list a").first.click()
    frames = page.locator(".frames img")
    expect(frames.first).to_be_visible()
    page.evaluate("Promise.all([...document.querySelectorAll('.frames img')].map((image) => image.decode()))")
    assert page.evaluate("[...document.querySelectorAll('.frames img')].every((image) => image.naturalWidth > 0)")
    began, _, duration = page.locator("video").evaluate(PLAY)
    assert began == 0 and duration == pytest.approx(4, abs=0.2)
    screenshot(page, "gallery-real-sample", tmp_path)


def test_parts_and_other_formats_play(page, address):
    """A part of a webm, which browsers find in the served file; a part of a folder of images; and an AVI."""
    seen = set()
    for sample in (
        "mvbench&sample=Action+Sequence%2F0",
        "mvbench&sample=Episodic+Reasoning%2F0",
        "msvd_qa&sample=msvd_qa_0",
    ):
        page.goto(f"{address}#benchmark={sample}")
        video = page.locator("video")
        expect(video).to_be_visible()
        began, source, _ = video.evaluate(PLAY)
        assert began == pytest.approx(0.5 if "#t=0.5,3.2" in source else 0, abs=0.01)
        seen.add("#t=" in source)
    assert seen == ({True, False} if address.startswith("http") else {False})


def test_what_a_judge_says_is_shown(page, address):
    page.goto(address)
    benchmarks = {each["name"]: each for each in page.evaluate("window.PLLAVA_GALLERY.benchmarks")}
    said = {}  # a sample for each thing that the judge says
    for sample in benchmarks["vcgbench"]["samples"]:
        said |= {verdict["reason"]: sample["id"] for verdict in sample["answers"][0]["verdicts"] if verdict["reason"]}
    assert REASON in said and any(reason.startswith("No grade: ") for reason in said)
    for reason, sample in said.items():
        page.goto(f"{address}#benchmark=vcgbench&sample={sample}")
        expect(page.locator(".answer-card")).to_contain_text(reason)


def test_clip_that_is_missing_is_said_to_be(page, address):
    page.goto(f"{address}#benchmark=mvbench&sample=Fine-grained+Action%2F0")
    expect(page.get_by_text("The clip cannot be read: No such file or directory.")).to_be_visible()
    expect(page.locator(".answer-card")).to_contain_text("Cannot decode clip_3_0.webm: there is no such file.")
