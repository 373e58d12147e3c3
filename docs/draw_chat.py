"""
Take docs/figures/chat.png, the picture of the chat in the README: nano answers questions about a clip of its world.

    python docs/draw_chat.py

It needs Chromium (`apt-get install chromium`) and `pip install 'pllava[demo]' playwright`.
"""

import os
import shutil
import tempfile
from pathlib import Path

from figure_style import FIGURES
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

WIDTH, HEIGHT = 1280, 960  # pixels
COLOURS = 128  # of the file
EXAMPLE = "Select example 3"
QUESTIONS = ("How many times",)  # beginnings of the suggestions that are clicked then


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.environ["GRADIO_TEMP_DIR"] = folder  # before Gradio is imported
        address = serve(Path(folder, "shared"))
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(address)
        hold_conversation(page)
        file = FIGURES / "chat.png"
        page.screenshot(path=file)
        chromium.close()
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"Wrote {file}, {file.stat().st_size / 1000:.0f} kB")
    os._exit(0)  # the server's threads do not end by themselves


def serve(shared: Path) -> str:
    import pllava
    from pllava.demo.page import build_demo, launch_options
    from pllava.loading import load_processor

    model = pllava.load_model(pllava.NANO)
    page = build_demo(model, load_processor(model), "nano", shared)
    return page.launch(quiet=True, prevent_thread_lock=True, **launch_options())[1]


def hold_conversation(page: Page) -> None:
    page.get_by_label(EXAMPLE).click()
    for number, beginning in enumerate((None, *QUESTIONS), start=1):
        if beginning:
            page.locator("#suggestions button").filter(has_text=beginning).first.click()
        expect(page.locator("#chats .note")).to_have_count(number, timeout=60_000)
    page.locator("#prompt > button").click()
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(1000)  # the accordion opens


if __name__ == "__main__":
    main()
