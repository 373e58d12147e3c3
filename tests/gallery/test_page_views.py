"""The gallery's views, filters, sorting, links and history, from disk and from a server."""

import re

import pytest
from browser import open_page, screenshot
from gallery_data import make_benchmark, make_gallery, write_gallery
from playwright.sync_api import expect

pytestmark = pytest.mark.slow
SAMPLES = make_gallery()["benchmarks"][0]["samples"]
CLIPS = make_gallery()["benchmarks"][0]["clips"]


def statuses(sample):
    return [answer and answer["status"] for answer in sample["answers"]]


def open_view(page, name):
    page.get_by_role("navigation", name="Views").get_by_role("link", name=name).click()


def expect_shown(page, samples):
    """Expect the count and, in the rows of the list, these samples in their order."""
    expect(page.locator(".shown [role=status]")).to_have_text(f"{len(samples)} of 40 samples")
    seen = page.locator(".list li a").evaluate_all("links => links.map((link) => link.hash)")
    assert [re.search("sample=(.*?)(&|$)", link).group(1) for link in seen] == [s["id"] for s in samples[: len(seen)]]
    assert len(seen) >= min(5, len(samples))


@pytest.mark.parametrize("view", ["right", "wrong", "unreadable"])
def test_a_view_shows_the_samples_of_its_status(page, address, view, tmp_path):
    page.goto(address)
    open_view(page, view.capitalize())
    expect_shown(page, [sample for sample in SAMPLES if view in statuses(sample)])
    page.get_by_role("combobox", name="Run").select_option("B")
    chosen = [sample for sample in SAMPLES if statuses(sample)[1] == view]
    expect_shown(page, chosen)
    expect(page.locator(".views [aria-current]")).to_contain_text(str(len(chosen)))
    screenshot(page, f"gallery-{view}", tmp_path)


def test_different_shows_disagreement_first_and_the_comparison(page, address, tmp_path):
    page.goto(address)
    open_view(page, "Different")
    different = [sample for sample in SAMPLES if sample["disagreement"] > 0]
    expect_shown(page, sorted(different, key=lambda sample: -sample["disagreement"]))
    expect(page.get_by_role("main").get_by_role("heading").first).to_have_text("B compared with A")
    last = page.locator("section[aria-labelledby=compare-title] .row.all")
    expect(last).to_contain_text(re.compile(r"[+−]\d+\.\d \[[−\d., ]+\] p = 0\.420"))
    expect(page.get_by_role("list", name="Runs")).to_contain_text(re.compile(r"B − A: [+−]\d+\.\d \["))
    screenshot(page, "gallery-different", tmp_path)


def test_filters_and_sorting(page, address):
    page.goto(address)
    page.get_by_role("combobox", name="Task").select_option("counting")
    expect_shown(page, [sample for sample in SAMPLES if sample["task"] == "counting"])
    page.get_by_role("combobox", name="Task").select_option("")

    search = page.get_by_role("searchbox")
    search.fill("FROM FRAME 7")
    expect_shown(page, [sample for sample in SAMPLES if "frame 7?" in sample["questions"][0]])
    search.fill("slowly from the left")  # in an answer and a reference
    expect_shown(page, [sample for sample in SAMPLES if sample["id"] == "long"])
    search.fill("")

    page.get_by_label("Clip, in seconds, from").fill("6")
    page.get_by_label("Clip, in seconds, to").fill("8")
    expect_shown(page, [sample for sample in SAMPLES if 6 <= CLIPS[sample["clip"]]["seconds"] <= 8])
    page.get_by_role("button", name="Clear filters").click()
    expect_shown(page, SAMPLES)

    page.get_by_label("Score, from").fill("0.5")
    page.get_by_label("Score, to").fill("0.9")
    expect_shown(page, [sample for sample in SAMPLES if sample["id"] == "judged"])
    page.get_by_role("button", name="Clear filters").click()

    page.get_by_label("Sort by").select_option("seconds")
    expect_shown(page, sorted(SAMPLES, key=lambda sample: CLIPS[sample["clip"]]["seconds"]))


def test_a_task_of_the_chart_shows_its_samples(page, address):
    page.goto(address)
    page.get_by_role("main").get_by_role("link", name="direction").first.click()
    expect_shown(page, [sample for sample in SAMPLES if sample["task"] == "direction"])


def test_empty_views_and_filters_say_so(page, address, built_page, tmp_path):
    page.goto(f"{address}#view=wrong&text=nothing+has+this")
    expect(page.get_by_text("No sample of this view matches the filters.")).to_be_visible()
    screenshot(page, "gallery-empty", tmp_path)
    page.locator(".empty").get_by_role("button", name="Clear filters").click()
    expect_shown(page, [sample for sample in SAMPLES if "wrong" in statuses(sample)])

    gallery = make_gallery(samples=0, runs=1)
    page.goto(write_gallery(tmp_path / "none", built_page, gallery).as_uri())
    expect(page.get_by_text("This benchmark has no samples.")).to_be_visible()
    expect(page.locator(".views a")).to_have_count(4)

    gallery["benchmarks"] = []
    page.goto("about:blank")
    page.goto(write_gallery(tmp_path / "none", built_page, gallery).as_uri())
    expect(page.get_by_text("This gallery has no results.")).to_be_visible()


def test_missing_data_and_other_versions_are_named(browser, built_page, tmp_path):
    path = write_gallery(tmp_path, built_page, make_gallery() | {"version": 2})
    with open_page(browser) as page:
        page.goto(path.as_uri())
        expect(page.get_by_text("data/gallery.js has version 2")).to_be_visible()
    (tmp_path / "data" / "gallery.js").unlink()
    page = browser.new_page()  # its console names the missing file
    page.goto(path.as_uri())
    expect(page.get_by_text("The data of this page, data/gallery.js, is missing or broken.")).to_be_visible()
    page.close()


def test_a_link_opens_the_same_view_and_sample_in_a_fresh_page(browser, page, address):
    page.goto(address)
    open_view(page, "Wrong")
    page.get_by_role("combobox", name="Run").select_option("B")
    page.get_by_role("searchbox").fill("square")
    page.locator(".list li a").nth(1).click()
    sample = page.locator(".sample .facts").inner_text()
    place = page.locator(".toolbar [role=status]").inner_text()
    with open_page(browser, viewport={"width": 1280, "height": 800}) as fresh:
        fresh.goto(page.url)
        expect(fresh.locator(".sample .facts")).to_have_text(sample, use_inner_text=True)
        expect(fresh.locator(".toolbar [role=status]")).to_have_text(place)
        expect(fresh.get_by_role("searchbox")).to_have_value("square")
        expect(fresh.get_by_role("combobox", name="Run")).to_have_value("B")
        expect(fresh.locator(".views [aria-current]")).to_contain_text("Wrong")
        expect(fresh.locator(".list a[aria-current]")).to_be_visible()


def test_back_and_forward(page, address):
    page.goto(address)
    open_view(page, "Wrong")
    page.locator(".list li a").first.click()
    page.locator(".list li a").nth(2).click()
    third = page.get_by_role("heading", level=2).first.inner_text()
    page.go_back()
    expect(page.get_by_role("heading", level=2).first).not_to_have_text(third)
    page.go_back()
    expect(page.get_by_role("heading", name="Accuracy (%) by task")).to_be_visible()
    expect(page.locator(".views [aria-current]")).to_contain_text("Wrong")
    page.go_back()
    expect(page.locator(".views [aria-current]")).to_contain_text("All")
    for _ in range(3):
        page.go_forward()
    expect(page.get_by_role("heading", level=2).first).to_have_text(third)


def test_unknown_samples_and_values_in_a_link(page, address):
    page.goto(f"{address}#sample=gone&view=odd&run=Z&sort=odd&pair=XY&benchmark=none")
    expect(page.get_by_text("This gallery has no sample gone.")).to_be_visible()
    expect_shown(page, SAMPLES)
    page.get_by_role("link", name="Show the results").click()
    expect(page.get_by_role("heading", name="Accuracy (%) by task")).to_be_visible()


def test_several_benchmarks_and_pairs(page, built_page, tmp_path):
    gallery = make_gallery(runs=3)
    other = make_benchmark("other", samples=12, runs=1, seed=1) | {"unit": "0 to 5", "measure": "score"}
    gallery["benchmarks"].append(other)
    page.goto(write_gallery(tmp_path, built_page, gallery).as_uri())
    page.get_by_label("Pair").select_option("BC")
    expect(page.get_by_role("heading", name="C compared with B")).to_be_visible()
    expect(page.get_by_role("list", name="Runs")).to_contain_text("C − B:")
    screenshot(page, "gallery-three-runs", tmp_path)

    page.get_by_label("Benchmark").select_option("other")
    expect(page.get_by_role("heading", name="Score (0 to 5) by task")).to_be_visible()
    expect(page.locator(".shown [role=status]")).to_have_text("12 of 12 samples")
    expect(page.locator("section[aria-labelledby=compare-title]")).to_have_count(0)
    expect(page.get_by_role("combobox", name="Run")).to_have_count(0)
    page.go_back()
    expect(page.get_by_role("heading", name="C compared with B")).to_be_visible()


def test_a_copied_link_is_the_address(browser, address):
    options = {"permissions": ["clipboard-read", "clipboard-write"], "viewport": {"width": 1280, "height": 800}}
    with open_page(browser, **options) as page:
        page.goto(address)
        page.locator(".list li a").nth(6).click()
        page.get_by_role("main").get_by_role("button", name="Copy link").click()
        expect(page.get_by_text("Link to this sample copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == page.url
        assert "sample=00006" in page.url
