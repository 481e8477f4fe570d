"""The demo, served on this machine and opened in headless Chromium."""

import shutil
import threading
from contextlib import ExitStack, contextmanager

import pytest

from demo import serve
from tests.vlm.report.conftest import CHROMIUM, FLAGS

CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
LOADED = 60_000  # milliseconds to wait at most


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium with a camera that shows a test picture."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        pytest.fail("these tests drive Chromium, which is not installed: `make browser` installs it", pytrace=False)
    if not (serve.DEMO / "vendor/wllama/index.js").exists():
        pytest.fail("these tests need wllama, which is missing: `make demo-files` fetches it", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS, *CAMERA])
        yield browser
        browser.close()


@contextmanager
def running(server):
    """The address of a server while it runs in a thread."""
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def open_demo(chromium):
    """open_demo(folder) serves the page with a folder's classifier and waits until it is loaded.

    open_demo(address=...) opens one that is served already. From then on there is no network. The test fails if the
    page reports an error or a warning, or if it asks another address; `expected` are complaints that are right.
    """
    stack, complaints, right = ExitStack(), [], []

    def open_(folder=None, address=None, expected=(), prepare=lambda page: None, **options):
        right.extend(expected)
        address = address or stack.enter_context(running(serve.server(folder, 0)))
        context = chromium.new_context(**options)
        stack.callback(context.close)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((address, "blob:", "data:")) or complaints.append(f"network: {request.url}")
            ),
        )
        prepare(page)
        page.goto(address)
        page.locator("#progress").wait_for(state="hidden", timeout=LOADED)
        context.set_offline(True)
        return page

    with stack:
        yield open_
    assert [text for text in complaints if not any(part in text for part in right)] == []
