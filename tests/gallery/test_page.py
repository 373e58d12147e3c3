"""The gallery's page in short: it opens from disk, shows results and samples, and texts of models stay texts."""

import json

from browser import screenshot
from gallery_data import ATTACK, check_shape, make_gallery
from playwright.sync_api import expect


def test_synthetic_data_have_the_shape_of_a_gallery():
    gallery = json.loads(json.dumps(make_gallery()))
    assert check_shape(gallery) == []
    del gallery["benchmarks"][0]["unit"]
    gallery["title"] = None
    assert len(check_shape(gallery)) == 2


def test_the_page_opens_from_disk_and_shows_results_and_samples(page, small_gallery, tmp_path):
    page.goto(small_gallery.as_uri())
    expect(page).to_have_title("nano, with and without video")
    results = page.get_by_role("main")
    expect(results.get_by_role("heading", name="Accuracy (%) by task")).to_be_visible()
    expect(results.get_by_role("heading", name="B compared with A")).to_be_visible()
    chart = results.get_by_role("img").first
    assert "A nano: " in (label := chart.get_attribute("aria-label")) and "PLLaVA 34B (paper): 58.1" in label
    expect(page.get_by_role("link", name="All 40")).to_have_attribute("aria-current", "page")
    screenshot(page, "gallery-results", tmp_path)

    page.get_by_role("link", name="Which way does").first.click()
    expect(page.get_by_role("heading", level=2)).to_contain_text("Which way does")
    frames = page.locator(".frames img")
    expect(frames).to_have_count(8)
    assert frames.nth(1).get_attribute("alt") == "Frame 2 of 8 at 0:00.50"
    assert all(page.evaluate("[...document.querySelectorAll('.frames img')].map((image) => image.naturalWidth > 0)"))
    screenshot(page, "gallery-sample", tmp_path)


def test_markup_in_texts_is_shown_as_text(page, small_gallery, tmp_path):
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{small_gallery.as_uri()}#sample=attack")
    expect(page.locator(".answer-card").first).to_contain_text(ATTACK)
    expect(page.get_by_role("heading", level=2)).to_have_text(f"What colour? {ATTACK}")
    expect(page.locator(".list li").first).to_contain_text("<img src=x")
    assert page.title().startswith("What colour? <img")
    assert page.locator("img[src=x]").count() == 0 and not [url for url in requests if url.endswith("/x")]
    screenshot(page, "gallery-markup", tmp_path)


def test_the_policy_lets_no_other_script_run(browser, small_gallery):
    page = browser.new_page()  # the console reports what the policy refuses
    page.goto(small_gallery.as_uri())
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert "unsafe" not in policy and "default-src 'none'" in policy
    refused = page.evaluate(
        """new Promise((resolve) => {
            addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
            document.body.append(Object.assign(document.createElement("script"), {textContent: "window.ran = 1"}));
        })"""
    )
    assert refused == "script-src-elem" and page.evaluate("window.ran") is None
    page.close()
