"""The browser of the system, headless, for tests that look at pages as a person does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

__all__ = ["browser", "open_page"]

#: Folder that screenshots are kept in, such as `docs/images`; unset, they are taken and thrown away.
SCREENSHOTS = "SCREENSHOTS"
#: Longest wait for anything on a page, in milliseconds; the machine may be busy with other tests.
LIMIT_MS = 30_000
#: Largest picture that the repository keeps, in bytes.
MAX_PICTURE_BYTES = 150_000

_DROP = """([name, text]) => {
    const data = new DataTransfer();
    data.items.add(new File([text], name));
    for (const kind of ["dragenter", "dragover", "drop"])
        document.getElementById("drop").dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for the tests of a file. Each opens pages in contexts of its own (`open_page`).

    No longer than that: while it runs, its event loop counts as the thread's, and other tests want theirs.
    """
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        # As root its sandbox can't be had; what it is shown is ours.
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page without cookies: `open_page(color_scheme="dark")` takes what `Browser.new_context` takes.

    A request to anywhere but this machine fails the test.
    """
    contexts: list[BrowserContext] = []
    strangers: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "http://localhost:", "data:", "blob:", "about:")):
            strangers.append(request.url)

    def make(**options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})  # type: ignore[arg-type]
        context.set_default_timeout(LIMIT_MS)
        context.on("request", note)
        contexts.append(context)
        return context.new_page()

    yield make
    for context in contexts:
        context.close()
    assert strangers == [], "pages ask others than this machine"


def keep_screenshot(page: Page, name: str) -> bytes:
    """A picture of what the page shows; kept as `name` (`console-batches.png`) where `SCREENSHOTS` names a folder."""
    picture = page.screenshot(animations="disabled")
    if folder := os.environ.get(SCREENSHOTS):
        assert len(picture) <= MAX_PICTURE_BYTES, f"{name} has {len(picture)} bytes; {MAX_PICTURE_BYTES} are the limit"
        Path(folder, name).write_bytes(picture)
    return picture


def check_accessible(page: Page) -> None:
    """Of the rules of WCAG 2.2 AA, as far as a program can tell."""
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}}).response["violations"]
    wrong = [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"][:3]]
    assert not wrong, "\n".join([page.url, *wrong])


def drop_file(page: Page, name: str, text: str) -> None:
    """Drop a file on the page for uploads, as a hand would."""
    page.evaluate(_DROP, [name, text])


@contextmanager
def no_complaints(page: Page) -> Iterator[None]:
    """What the browser warns of, such as a broken content security policy, is an error."""
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield
    assert complaints == []
