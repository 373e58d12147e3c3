"""`pllava demo` answers a browser."""

import sys

from browser import open_browser, open_page
from demo_server import run_server
from playwright.sync_api import expect
from ports import free_port


def test_command_serves_a_page_that_answers(tmp_path):
    port = free_port()
    command = [sys.executable, "-c", "import pllava_cli; pllava_cli.app()", "demo", "--port", port]
    command += ["--folder", str(tmp_path)]
    log = tmp_path / "log"
    with run_server(command, port, log, GRADIO_ANALYTICS_ENABLED="False") as address, open_browser() as browser:
        with open_page(browser) as page:
            page.goto(address)
            page.get_by_label("Select example 1: How many times does the white square bounce?").click(timeout=30_000)
            expect(page.locator("#chats .note")).to_have_text("Right: this is the true answer.", timeout=30_000)
            expect(page.locator("#seen img")).to_have_count(16)
    assert f"nano answers at {address}/. Ctrl-C ends it." in log.read_text()
