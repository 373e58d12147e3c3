"""The page of the chat in a browser, with a real server: asking, watching, stopping, changing, sharing."""

import re
import shutil
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import PHONE, open_browser, open_page, screenshot
from demo_server import demo_server
from playwright.sync_api import expect
from video_files import moving_frames, write_video

from pllava.demo import worlds

pytestmark = pytest.mark.slow
SECONDS_A_TOKEN = 0.1


@pytest.fixture(scope="module")
def browser():
    with open_browser("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream") as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def server(folder, adapter):
    (folder / "links").mkdir()
    with demo_server(folder, SECONDS_A_TOKEN, adapter) as address:
        yield address
    log = (folder / "server.log").read_text()
    assert "Traceback" not in log, log


@pytest.fixture
def page(browser, server):
    with open_page(browser, viewport={"width": 1280, "height": 900}) as page:
        yield visit(page, server)


def visit(page, address):
    page.goto(address)
    expect(page.locator("#message textarea")).to_be_editable(timeout=30_000)
    expect(page.locator("#message textarea")).to_be_focused()
    return page


def attach(page, path):
    with page.expect_file_chooser() as chooser:
        page.locator("#message").get_by_label("Upload a file").click()
    chooser.value.set_files(str(path))
    expect(page.locator("#message .thumbnails button, #message .thumbnail-item").first).to_be_visible()


def ask(page, text, wait=True):
    page.locator("#message textarea").fill(text)
    page.locator("#message textarea").press("Enter")
    if wait:
        wait_for_answer(page)


def wait_for_answer(page):
    expect(page.locator("#message .stop-button")).to_be_visible(timeout=30_000)  # the first waits for a decoder
    expect(page.locator("#message .stop-button")).to_have_count(0, timeout=60_000)


def answers(page, chat=0):
    return page.locator("#chats [role=log]").nth(chat).locator(".bot.message .message-content")


def set_alpha(page, name, value):
    field = page.get_by_label(f"number input for {name}", exact=True)
    field.fill(str(value))
    field.press("Tab")


def open_settings(page):
    page.locator("#settings > button").click()


@pytest.fixture(scope="module")
def world(folder):
    """A clip outside the server's folders, to be uploaded."""
    return worlds.roll(folder / "mine", 40)


def test_an_example_can_be_asked_before_the_page_has_loaded(browser, server):
    held = []

    def hold_first(route):
        held.append(route)
        if len(held) > 1:
            route.continue_()

    with open_page(browser) as page:
        page.route("**/queue/join*", hold_first)
        page.goto(server)
        page.get_by_label("Select example 4").click(timeout=30_000)
        expect(page.locator("#chats .note")).to_be_visible(timeout=60_000)
        held[0].continue_()  # what the page asked when it was opened
        expect(page.locator("#message textarea")).to_be_editable()


def test_upload_watch_the_answer_grow_and_ask_again(page, world, tmp_path):
    attach(page, world.path)
    ask(page, "Describe the video.", wait=False)
    answer = answers(page).last
    expect(answer).to_be_visible(timeout=30_000)
    partial = answer.inner_text()
    wait_for_answer(page)
    whole = answer.inner_text()
    assert 0 < len(partial) < len(whole)
    expect(page.locator("#seen img")).to_have_count(16)
    assert page.locator("#seen img").nth(1).get_attribute("alt") == "Frame 2, at 0.25 s"
    expect(page.locator("#seen figcaption").nth(15)).to_have_text("3.62 s")
    expect(page.locator("#facts")).to_contain_text("Tokens in")
    page.locator("#prompt > button").click()
    expect(page.locator("#prompt pre")).to_have_text("USER:<video> x 144 Describe the video. ASSISTANT:")
    ask(page, "How many shapes are there in all?")
    expect(answers(page)).to_have_count(2)
    expect(page.locator("#prompt pre")).to_contain_text(f"ASSISTANT:{whole}</s>USER:How many shapes")
    screenshot(page, "chat_two_turns", tmp_path)


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop(page, world, how):
    open_settings(page)
    set_alpha(page, "Alpha", 64)  # at which the answer hardly ends
    attach(page, world.path)
    ask(page, "Describe the video.", wait=False)
    expect(answers(page).last).to_be_visible(timeout=30_000)
    if how == "button":
        page.locator("#message .stop-button").click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator("#chats .note").first).to_contain_text("Stopped.", timeout=5_000)
    expect(page.locator("#message .submit-button")).to_be_visible()
    set_alpha(page, "Alpha", 0)
    ask(page, "What colour is the cross?")
    expect(answers(page)).to_have_count(2)


def test_alpha_and_two_alphas_side_by_side(page, world, tmp_path):
    open_settings(page)
    attach(page, world.path)
    set_alpha(page, "Alpha", 0)
    ask(page, "Describe the video.")
    expect(page.locator("#chats .note").first).to_contain_text("α = 0")
    image_model = answers(page).last.inner_text()
    page.get_by_label("Answer at two alphas, side by side").check()
    set_alpha(page, "Second alpha", 16)
    ask(page, "Describe the video.", wait=False)
    expect(answers(page, 1).nth(1)).to_be_visible(timeout=30_000)
    wait_for_answer(page)
    notes = [page.locator("#chats [role=log]").nth(chat).locator(".note").last for chat in (0, 1)]
    expect(notes[0]).to_contain_text("α = 0")
    expect(notes[1]).to_contain_text("α = 16")
    assert answers(page, 0).last.inner_text() != answers(page, 1).last.inner_text() and image_model
    expect(page.locator("#facts thead")).to_have_text("α = 0α = 16")
    screenshot(page, "chat_two_alphas", tmp_path)
    page.get_by_label("Answer at two alphas, side by side").uncheck()
    expect(page.locator("#chats [role=log]")).to_have_count(1)


def test_settings_change_what_the_model_sees(page, world):
    open_settings(page)
    attach(page, world.path)
    page.get_by_label("Frames", exact=True).fill("8")
    page.get_by_label(re.compile("Start")).fill("1")
    page.get_by_label(re.compile("End")).fill("2")
    page.get_by_label("Pooling").fill("average-8x2x3")
    page.get_by_label("System text").fill("Be brief.")
    ask(page, "Describe the video.")
    expect(page.locator("#seen figcaption")).to_have_count(8)
    times = [float(text.removesuffix(" s")) for text in page.locator("#seen figcaption").all_inner_texts()]
    assert 1 <= times[0] and times[-1] <= 2
    page.locator("#prompt > button").click()
    expect(page.locator("#prompt pre")).to_have_text("Be brief. USER:<video> x 48 Describe the video. ASSISTANT:")
    page.get_by_label("Pooling").fill("average-8x9x3")
    page.locator("#message textarea").fill("Describe the video.")
    page.locator("#message textarea").press("Enter")
    expect(page.locator(".toast-body")).to_contain_text("The pooling average-8x9x3 does not fit")
    expect(page.locator("#message textarea")).to_have_value("Describe the video.")


def test_image_and_video_in_one_conversation(page, world, tmp_path):
    image = tmp_path / "shapes.png"
    shutil.copyfile(worlds.picture(tmp_path / "made", 40).path, image)
    attach(page, image)
    ask(page, "What colour is the cross?")
    expect(page.locator("#seen img")).to_have_count(1)
    attach(page, world.path)
    ask(page, "Describe the video.")
    expect(page.locator("#seen img")).to_have_count(17)
    expect(page.locator("#chats img")).to_have_attribute("alt", "shapes.png")


def test_wrong_files_and_empty_questions_give_a_sentence(page, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0\x20ftypisom" + b"\0" * 500)
    (tmp_path / "notes.txt").write_text("no video")
    ask(page, "Hello", wait=False)
    expect(page.locator(".toast-body").last).to_contain_text("There is no video or image yet")
    expect(page.locator("#message textarea")).to_have_value("Hello")
    for name in ("broken.mp4", "notes.txt"):
        attach(page, tmp_path / name)
        ask(page, "Describe the video.", wait=False)
        expect(page.locator(".toast-body").last).to_contain_text(f"Cannot decode {name}", timeout=20_000)
        expect(page.locator("#message textarea")).to_have_value("Describe the video.")
        page.get_by_role("button", name="Clear", exact=True).last.click()
        expect(page.locator("#message textarea")).to_have_value("")
    assert "Traceback" not in page.locator("body").inner_text()
    screenshot(page, "chat_error", tmp_path)


def test_a_clip_that_browsers_cannot_play_is_shown_as_one_that_they_can(page, tmp_path):
    path = write_video(tmp_path / "old.avi", moving_frames(20, 96, 128), fps=10, codec="mpeg4")
    attach(page, path)
    ask(page, "Describe the video.")
    video = page.locator("#chats video")
    expect(video).to_have_attribute("src", re.compile(r"old\.mp4$"))
    page.wait_for_function("document.querySelector('#chats video').readyState >= 2")
    assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [128, 96]


def test_roll_a_clip_and_click_a_question(page, tmp_path):
    page.get_by_role("button", name="Roll a new clip").click()
    questions = page.locator("#suggestions button")
    expect(questions.first).to_be_visible()
    expect(page.locator("#seen img")).to_have_count(16)
    screenshot(page, "chat_rolled", tmp_path)
    count, text = questions.count(), questions.first.inner_text()
    questions.first.click()
    wait_for_answer(page)
    expect(page.locator("#chats .note").first).to_contain_text(re.compile("this is the true answer|The true answer: "))
    expect(page.locator("#chats .user.message").last).to_have_text(text)
    expect(questions).to_have_count(count - 1)


def test_an_example_answers_at_once(page, tmp_path):
    screenshot(page, "chat_empty", tmp_path)
    page.get_by_label(re.compile("Select example 1")).click()
    wait_for_answer(page)
    expect(answers(page)).to_have_count(1)
    expect(page.locator("#seen img")).to_have_count(16)


def test_edit_retry_undo_and_clear(page, world):
    attach(page, world.path)
    ask(page, "How many shapes are there in all?")
    ask(page, "Describe the video.")
    page.locator("#chats").get_by_label("Edit").first.click()
    editor = page.locator("#chats textarea")
    editor.fill("What colour is the cross?")
    page.locator("#chats").get_by_label("Submit").click()
    wait_for_answer(page)
    expect(answers(page)).to_have_count(1)  # what followed the edited question is gone
    expect(page.locator("#chats .user.message").last).to_have_text("What colour is the cross?")
    page.locator("#chats").get_by_role("button", name="Retry").click()
    wait_for_answer(page)
    expect(answers(page)).to_have_count(1)
    page.locator("#chats").get_by_role("button", name="Undo").click()
    expect(answers(page)).to_have_count(0)
    expect(page.locator("#message textarea")).to_have_value("What colour is the cross?")
    ask(page, "What colour is the cross?")
    expect(page.locator("#chats video")).to_have_count(1)
    page.get_by_role("button", name="Clear", exact=True).last.click()
    expect(page.locator("#chats video")).to_have_count(0)
    expect(page.get_by_label(re.compile("Select example 1"))).to_be_visible()


@pytest.mark.parametrize("name", ["Clear", "Roll a new clip"])
def test_a_new_conversation_ends_the_answer_of_the_old_one(page, world, name):
    open_settings(page)
    set_alpha(page, "Alpha", 64)
    attach(page, world.path)
    ask(page, "Describe the video.", wait=False)
    expect(answers(page).last).to_be_visible(timeout=30_000)
    page.locator("#tools").get_by_role("button", name=name).click()
    expect(page.locator("#message .submit-button")).to_be_visible()
    expect(answers(page)).to_have_count(0)
    page.wait_for_timeout(1500)  # in which the old answer would have grown
    expect(answers(page)).to_have_count(0)
    set_alpha(page, "Alpha", 0)
    if name == "Clear":
        attach(page, world.path)
    ask(page, "What colour is the cross?")
    expect(answers(page)).to_have_count(1)


def test_closing_the_page_ends_its_answer(page, browser, server, world):
    with open_page(browser) as closed:
        visit(closed, server)
        open_settings(closed)
        set_alpha(closed, "Alpha", 64)
        attach(closed, world.path)
        ask(closed, "Describe the video.", wait=False)  # takes 25 s
        expect(answers(closed).last).to_be_visible(timeout=30_000)
    open_settings(page)
    set_alpha(page, "Alpha", 0)
    attach(page, world.path)
    ask(page, "What colour is the cross?", wait=False)
    expect(answers(page)).to_have_count(1, timeout=10_000)


def test_shared_link_opens_elsewhere_and_goes_on(page, browser, server, world, tmp_path):
    attach(page, world.path)
    ask(page, "What colour is the cross?")
    page.get_by_role("button", name="Share", exact=True).click()
    link = page.locator("#link textarea, #link input")
    expect(link).to_have_value(re.compile(rf"^{server}/\?conversation=[\w-]{{30,}}$"))
    with open_page(browser) as other:
        visit(other, link.input_value())
        expect(answers(other)).to_have_text(answers(page).all_inner_texts())
        other.wait_for_function("document.querySelector('#chats video').readyState >= 1")
        ask(other, "Describe the video.")
        expect(answers(other)).to_have_count(2)
        expect(other.locator("#seen img")).to_have_count(16)
    for name in ("00000001-" + "a" * 22, "../../shared", "6b0942fd-" + "a" * 22):
        with open_page(browser) as other:
            visit(other, f"{server}/?conversation={name}")
            expect(other.locator(".toast-body")).to_contain_text(re.compile("has expired|no such conversation"))


def test_deep_link_attaches_the_clip_and_types_the_question(page, browser, server, folder, world):
    target = folder / "links" / "film one.mp4"
    shutil.copyfile(world.path, target)
    with open_page(browser) as linked:
        visit(
            linked,
            f"{server}/?video={target}&question=What colour is the cross%3F&num_frames=8&start=1&end=3"
            "&pooling=slowfast",
        )
        expect(linked.locator("#message textarea")).to_have_value("What colour is the cross?")
        expect(answers(linked)).to_have_count(0)
        linked.locator("#message textarea").press("Enter")
        wait_for_answer(linked)
        expect(linked.locator("#seen figcaption")).to_have_count(8)
        expect(linked.locator("#seen")).to_contain_text("film_one.mp4, 1 s to 3 s")
        linked.locator("#prompt > button").click()
        expect(linked.locator("#prompt pre")).to_contain_text(f"<video> x {2 * 3 * 6 + 8} ")
    for reference in ("/etc/passwd", world.path, "http://127.0.0.1:1/a.mp4", "ftp://example.org/a.mp4"):
        with open_page(browser) as refused:
            visit(refused, f"{server}/?video={reference}&question=Why%3F")
            expect(refused.locator(".toast-body")).to_contain_text(re.compile("Cannot (read|fetch)"))
            expect(refused.locator("#message textarea")).to_have_value("Why?")


def test_special_tokens_and_markup_of_a_user_are_text(page, world):
    attach(page, world.path)
    text = "Is <video> or </s> or <b>this</b> here?"
    ask(page, text)
    assert page.locator("#chats .user.message").last.inner_text().replace("\u2060", "") == text
    page.locator("#prompt > button").click()
    expect(page.locator("#prompt pre")).to_have_text(f"USER:<video> x 144 {text} ASSISTANT:")


# --- how it looks, and who can use it ---


def conversation(page, world):
    page.get_by_role("button", name="Roll a new clip").click()
    page.locator("#suggestions button").first.click()
    wait_for_answer(page)
    ask(page, "Describe the video.")
    open_settings(page)
    page.locator("#prompt > button").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_looks(browser, server, world, scheme, size, tmp_path):
    options = PHONE if size == "phone" else {"viewport": {"width": 1280, "height": 900}}
    with open_page(browser, color_scheme=scheme, **options) as page:
        visit(page, server)
        assert violations(page) == []
        screenshot(page, f"chat_empty_{size}_{scheme}", tmp_path)
        conversation(page, world)
        screenshot(page, f"chat_{size}_{scheme}", tmp_path)
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        assert violations(page) == []
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        screenshot(page, f"chat_{size}_{scheme}_below", tmp_path)


def violations(page):
    """The serious and critical findings of axe-core, with the elements that they are about."""
    results = Axe().run(page).response
    found = [found for found in results["violations"] if found["impact"] in ("serious", "critical")]
    return [(each["id"], node["html"][:200]) for each in found for node in each["nodes"]]


def test_long_and_right_to_left_texts(browser, server, world, tmp_path):
    with open_page(browser, **PHONE) as page:
        visit(page, server)
        attach(page, world.path)
        ask(page, "كم عدد الأشكال في الفيديو؟ " * 3 + "x" * 150)
        direction = page.locator("#chats .user.message .message-content").last
        assert direction.evaluate("node => getComputedStyle(node.querySelector('span')).unicodeBidi") == "plaintext"
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        screenshot(page, "chat_rtl_long_phone", tmp_path)


def test_everything_by_keyboard(page, world):
    page.keyboard.press("Tab")
    for _ in range(40):
        focused = page.evaluate("document.activeElement.textContent.trim()")
        if focused == "Roll a new clip":
            break
        page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert focused == "Roll a new clip" and outline != "none"
    page.keyboard.press("Enter")
    expect(page.locator("#suggestions button").first).to_be_visible()
    for _ in range(60):
        if page.evaluate("document.activeElement.closest('#suggestions') !== null"):
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    wait_for_answer(page)
    expect(answers(page)).to_have_count(1)


def test_camera_records_a_clip_to_ask_about(page):
    page.locator("#record > button").click()
    page.get_by_text("Click to Access Webcam").click()
    page.get_by_role("button", name="start recording").click()
    page.wait_for_timeout(2000)
    page.get_by_role("button", name="start recording").click()  # it is named so while it records, too
    expect(page.locator("#message .thumbnails button, #message .thumbnail-item").first).to_be_visible(timeout=20_000)
    ask(page, "Describe the video.")
    expect(page.locator("#seen img")).to_have_count(16)
    expect(page.locator("#chats video")).to_have_attribute("src", re.compile(r"\.webm$"))


def test_images_have_alternatives(page):
    missing = page.locator("img:not([alt]), img[alt='']").all()
    assert [each.evaluate("node => node.outerHTML") for each in missing] == []
