"""A page in a headless Chromium, which `.ci/run` installs. Without the browser the tests that use it fail.

python tests/browser.py PAGE.html WIDTH PICTURE.png
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = "/usr/bin/chromium"


@contextmanager
def opened(path: Path, width: int, height: int = 900) -> Iterator[tuple[Page, list[str]]]:
    """Open the file `path` offline in a window of `width` × `height` pixels.

    Yields the page and its problems so far: errors, messages on the console and requests.
    """
    # Imported here, so that `make test` can collect the tests without it.
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as playwright:
        # Containers have no user namespaces for the browser's sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        address = path.resolve().as_uri()
        page.on("request", lambda request: None if request.url == address else problems.append(f"asks {request.url}"))
        page.goto(address)
        yield page, problems
        browser.close()


def wait_for(page: Page, condition: str) -> None:
    """Wait until the expression `condition` holds. Playwright's own wait would break the page's policy."""
    end = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition[:200]
        page.wait_for_timeout(20)


if __name__ == "__main__":
    with opened(Path(sys.argv[1]), int(sys.argv[2])) as (shown, found):
        shown.screenshot(path=sys.argv[3], full_page=True)
    print(*found, sep="\n")
