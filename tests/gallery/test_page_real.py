"""The page with results of real evaluations: exported and opened from disk, and served on this computer."""

import json
import threading

import pytest
from browser import screenshot
from gallery_data import check_shape
from playwright.sync_api import expect

from pllava.gallery.exporting import export_gallery
from pllava.gallery.local_server import GalleryServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(evaluated):
    return [evaluated.nano / "nano", evaluated.nano / "nano" / "no_video", evaluated.fewer, evaluated.published]


@pytest.fixture(scope="module")
def exported(folders, built_page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export_gallery(folders, folder, clips=True)
    return folder


@pytest.fixture(scope="module")
def server(folders, built_page):
    with GalleryServer(folders) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def read(script):
    return json.loads(script.partition(" = ")[2].rstrip().removesuffix(";"))


def test_exported_data_have_the_shape_that_the_page_reads(exported):
    assert check_shape(read((exported / "data" / "gallery.js").read_text())) == []


def test_each_sample_of_each_benchmark_can_be_opened(page, exported, tmp_path):
    gallery = read((exported / "data" / "gallery.js").read_text())
    assert len(gallery["benchmarks"]) == 4
    page.goto((exported / "index.html").as_uri())
    for benchmark in gallery["benchmarks"]:
        page.get_by_label("Benchmark").select_option(benchmark["name"])
        count = f"{len(benchmark['samples'])} of {len(benchmark['samples'])} samples"
        expect(page.locator(".shown [role=status]")).to_have_text(count)
        screenshot(page, f"gallery-{benchmark['name']}", tmp_path)
        for sample in benchmark["samples"]:
            page.keyboard.press("j")
            expect(page.get_by_role("heading", level=2).first).to_have_text(sample["questions"][0])
        expect(page.locator(".frames img").first).to_be_visible()
        screenshot(page, f"gallery-{benchmark['name']}-sample", tmp_path)
        page.keyboard.press("Escape")


def test_a_served_clip_plays_from_the_time_of_a_frame(page, server):
    page.goto(f"{server.address}#benchmark=nano")
    page.keyboard.press("j")
    expect(page.locator(".strips h3").first).to_contain_text("saw 16 frames")
    page.get_by_role("button", name="Frame 9 of 16").first.click()
    page.keyboard.press("p")
    for _ in range(100):
        page.wait_for_timeout(50)
        if page.evaluate("document.querySelector('video').currentTime") > 2:
            break
    assert page.evaluate("document.querySelector('video').currentTime") > 2
