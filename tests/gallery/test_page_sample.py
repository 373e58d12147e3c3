"""One sample in the gallery's page: clip, frames, options, answers, verdicts; and the short cuts."""

import time
import urllib.parse

import pytest
from browser import open_page, screenshot
from gallery_data import ARABIC, LONG, VIDEO, make_gallery, write_gallery
from playwright.sync_api import expect

pytestmark = pytest.mark.slow
SAMPLES = make_gallery()["benchmarks"][0]["samples"]


def wait_for_video(page, condition="readyState >= 2"):
    """Wait for a condition of the video; Playwright's own way evaluates text, which the page's policy forbids."""
    deadline = time.monotonic() + 10
    while not page.evaluate(f"document.querySelector('video')?.{condition}"):
        assert time.monotonic() < deadline, f"The video did not reach {condition}"
        page.wait_for_timeout(20)


def time_of_video(page):
    return page.evaluate("document.querySelector('video').currentTime")


def test_options_with_the_reference_and_what_each_run_chose(page, address):
    sample = SAMPLES[10]
    page.goto(f"{address}#sample={sample['id']}")
    options = page.locator(".options li")
    expect(options).to_have_count(4)
    expect(options.filter(has_text="reference")).to_contain_text(sample["reference"])
    for letter, answer in zip("AB", sample["answers"], strict=True):
        card = page.get_by_role("region", name=f"Answer of {letter} ")
        expect(card).to_contain_text(answer["texts"][0])
        expect(card.locator(".status")).to_contain_text(answer["status"])
        expect(card).to_contain_text(f"Read as: {answer['parsed']}")
        chosen = options.filter(has=page.get_by_text(letter, exact=True))
        assert [f"option {text[:3]}" for text in chosen.all_inner_texts()] == [answer["parsed"]]


def test_several_questions_with_the_verdicts_of_the_judge(page, address, tmp_path):
    page.goto(f"{address}#sample=judged")
    expect(page.get_by_role("heading", level=2)).to_have_count(2)
    card = page.get_by_role("region", name="Answer of A nano")
    for text in (
        "It goes right.",
        "To the right.",
        "right: 0.8",
        "correctness 4",
        "Both name the square and its way.",
    ):
        expect(card).to_contain_text(text)
    expect(card).to_contain_text("The judge gave no reason.")
    screenshot(page, "gallery-verdicts", tmp_path)


def test_damaged_clips_missing_answers_and_notes(page, address, tmp_path):
    page.goto(f"{address}#sample=none")
    for text in (
        "The clip is damaged: no frame could be decoded.",
        "The answer is empty.",
        "3 of 16 frames are damaged",
        "This run has no answer to this sample.",
    ):
        expect(page.get_by_role("main")).to_contain_text(text)
    assert page.locator("video, .frames").count() == 0
    screenshot(page, "gallery-damaged", tmp_path)


def test_long_answers_and_right_to_left_text(page, address, tmp_path):
    page.goto(f"{address}#sample=long")
    answer = page.locator(".answer-card .raw").first
    expect(answer).to_have_text(LONG.strip())
    expect(page.locator(".frames li").last).to_be_in_viewport()  # not pushed away by the answer
    screenshot(page, "gallery-long", tmp_path)
    page.goto(f"{address}#sample=arabic")
    expect(page.locator(".answer-card .raw").first).to_have_text(ARABIC)
    directions = page.locator(".sample h2, .answer-card .raw, .list li:nth-child(2) .question")
    assert set(directions.evaluate_all("all => all.map((each) => getComputedStyle(each).direction)")) == {"rtl"}
    screenshot(page, "gallery-right-to-left", tmp_path)


def test_the_clip_plays_and_pauses(page, address):
    page.goto(address)
    page.locator(".list li a").first.click()
    wait_for_video(page)
    page.keyboard.press("p")
    wait_for_video(page, "currentTime > 0.3")
    page.keyboard.press(" ")
    wait_for_video(page, "paused")


def test_a_frame_goes_to_its_time(page, small_gallery):
    page.goto(f"{small_gallery.as_uri()}#sample=attack")
    wait_for_video(page)
    page.get_by_role("button", name="Frame 5 of 8 at 0:02.00").click()
    wait_for_video(page, "seeking === false")
    assert time_of_video(page) == pytest.approx(2.0, abs=0.01)
    expect(page.locator(".frames .playing")).to_contain_text("0:02.00")


def test_a_part_of_a_clip_starts_and_ends_where_it_should(page, built_page, tmp_path):
    gallery = make_gallery(samples=6)
    gallery["benchmarks"][0]["clips"][0] |= {"start": 1.0, "end": 1.6, "seconds": 0.6, "video": f"{VIDEO}#t=1,1.6"}
    page.goto(f"{write_gallery(tmp_path, built_page, gallery).as_uri()}#sample=attack")
    wait_for_video(page)
    expect(page.locator(".sample .facts")).to_contain_text("0.6 s (1 s to 1.6 s)")
    assert time_of_video(page) == pytest.approx(1.0, abs=0.01)
    page.keyboard.press("p")
    wait_for_video(page, "currentTime > 1.1")
    wait_for_video(page, "paused")
    assert time_of_video(page) == pytest.approx(1.6, abs=0.3)  # browsers stop at the next chance


def test_a_part_that_was_cut_out_and_other_frames_of_a_run(page, built_page, tmp_path):
    gallery = make_gallery(samples=6, runs=3)
    clips, sample = gallery["benchmarks"][0]["clips"], gallery["benchmarks"][0]["samples"][0]
    clips[0] |= {"start": 10.0, "end": 14.0, "video_start": 10.0}
    clips[0]["strip"] = clips[0]["strip"] | {"times": [10 + time for time in clips[0]["strip"]["times"]]}
    clips.append(clips[0] | {"strip": clips[0]["strip"] | {"count": 4, "times": [13.5, 12.5, 11.5, None]}})
    clips.append(clips[0] | {"strip": None})
    sample["answers"][1]["clip"], sample["answers"][2]["clip"] = len(clips) - 2, len(clips) - 1
    page.goto(f"{write_gallery(tmp_path, built_page, gallery).as_uri()}#sample=attack")
    expect(page.locator(".strips h3")).to_have_text(["A saw 8 frames", "B saw 4 frames", "C saw no frames"])
    wait_for_video(page)
    page.get_by_role("button", name="Frame 5 of 8 at 0:12.00").click()
    wait_for_video(page, "seeking === false")
    assert time_of_video(page) == pytest.approx(2.0, abs=0.01)
    expect(page.locator(".frames .playing").first).to_contain_text("0:12.00")
    expect(page.locator(".frames .playing").last).to_contain_text("0:11.50")  # the frames stand in another order
    expect(page.get_by_role("img", name="Frame 4 of 4", exact=True)).to_be_visible()
    screenshot(page, "gallery-frames-of-runs", tmp_path)


def test_a_broken_clip_or_strip_gives_a_sentence(browser, built_page, tmp_path):
    path = write_gallery(tmp_path, built_page, make_gallery())
    (tmp_path / VIDEO).write_bytes(b"no video")
    gallery_strip = next(tmp_path.glob("frames/*/*.webp"))
    gallery_strip.write_bytes(b"no image")
    with open_page(browser) as page:
        page.goto(f"{path.as_uri()}#sample=attack")
        expect(page.get_by_text(f"This browser cannot play {VIDEO}.")).to_be_visible()
        expect(page.get_by_text("The frames could not be read from frames/")).to_be_visible()


def chat_link(page):
    link = urllib.parse.urlsplit(page.get_by_role("link", name="Ask this in the chat").get_attribute("href"))
    assert link.netloc == "127.0.0.1:7860"
    return dict(urllib.parse.parse_qsl(link.query))


def test_the_chat_gets_clip_question_and_frames(page, address):
    page.goto(f"{address}#sample=judged")
    video = urllib.parse.urljoin(address, VIDEO)
    assert chat_link(page) == {"video": video, "question": "Where does it go?", "num_frames": "8"}
    page.goto(f"{address}#sample={SAMPLES[10]['id']}")  # no video, and its name is no address
    expect(page.get_by_role("link", name="Ask this in the chat")).to_have_count(0)


@pytest.mark.parametrize(
    ("clip", "wanted"),
    [
        ({"video": f"{VIDEO}#t=10,14", "start": 10.0, "end": 14.0}, {"start": "10", "end": "14"}),
        ({"start": 10.0, "end": 14.0, "video_start": 10.0}, {"end": "4"}),  # cut out
        ({"video": None, "name": "https://example.org/a.mp4", "start": 2.5}, {"start": "2.5"}),
    ],
    ids=["part of a video", "cut out", "address"],
)
def test_the_chat_gets_the_part_of_a_clip(page, built_page, tmp_path, clip, wanted):
    gallery = make_gallery(samples=6, chat="http://127.0.0.1:7860")
    gallery["benchmarks"][0]["clips"][0] |= clip
    path = write_gallery(tmp_path, built_page, gallery)
    page.goto(f"{path.as_uri()}#sample=attack")
    given = chat_link(page)
    assert given.pop("video") == (clip.get("name") or (path.parent / VIDEO).as_uri())
    assert {name: given[name] for name in ("start", "end") if name in given} == wanted


@pytest.mark.parametrize("chat", [None, "javascript:alert(1)"])
def test_no_chat_no_link(page, built_page, tmp_path, chat):
    page.goto(f"{write_gallery(tmp_path, built_page, make_gallery(chat=chat)).as_uri()}#sample=judged")
    expect(page.get_by_role("heading", level=2).first).to_be_visible()
    expect(page.get_by_role("link", name="Ask this in the chat")).to_have_count(0)


def test_short_cuts(page, address, tmp_path):
    page.goto(address)
    heading = page.get_by_role("heading", level=2).first
    for key, place in (
        ("j", 1),
        ("j", 2),
        ("ArrowDown", 3),
        ("ArrowRight", 4),
        ("k", 3),
        ("ArrowUp", 2),
        ("ArrowLeft", 1),
    ):
        page.keyboard.press(key)
        expect(page.locator(".toolbar [role=status]")).to_have_text(f"{place} of 40")
    page.keyboard.press("k")  # there is nothing before the first
    expect(page.locator(".toolbar [role=status]")).to_have_text("1 of 40")
    for _ in range(5):  # faster than the page is drawn
        page.keyboard.press("j", delay=0)
    expect(page.locator(".toolbar [role=status]")).to_have_text("6 of 40")
    page.keyboard.press("Escape")
    expect(heading).to_have_text("Accuracy (%) by task")

    for key, view in zip("12345", ("All", "Right", "Wrong", "Unreadable", "Different"), strict=True):
        page.keyboard.press(key)
        expect(page.locator(".views [aria-current]")).to_contain_text(view)
    page.keyboard.press("1")

    page.keyboard.press("/")
    page.keyboard.type("j2 cars?")  # letters, not short cuts
    expect(page.get_by_role("searchbox")).to_have_value("j2 cars?")
    expect(page.locator(".empty")).to_be_visible()
    page.get_by_role("searchbox").fill("")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")

    page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("next sample")
    screenshot(page, "gallery-help", tmp_path)
    page.keyboard.press("j")  # the dialog is open
    expect(heading).to_have_text("Accuracy (%) by task")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.keyboard.press("c")
    expect(page.get_by_text("Link to this view copied").or_(page.get_by_text("The browser allows no"))).to_be_visible()


def test_the_focus_is_seen_and_goes_through_the_page(page, address):
    page.goto(address)
    seen = []
    for _ in range(16):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent.slice(0, 9) || document.activeElement.type"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", seen
    assert "Copy link" in seen and "search" in seen and len(set(seen)) > 10
    page.locator(".list li a").nth(7).focus()
    page.keyboard.press("Enter")
    expect(page.locator(".toolbar [role=status]")).to_have_text("8 of 40")
