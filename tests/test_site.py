"""The built documentation as a reader's browser shows it, at the width of a desk and of a phone.

Not here: whether its sentences are true (`test_docs.py`, `test_can_i_use.py`).
"""

import contextlib
import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.long

#: Pages that must hold formulas and figures, and at least how many of each.
MATHS = {"theory": 15, "metrics": 10, "howto/n_step": 2, "tutorials/02_theory_to_code": 9}
FIGURES = {
    "index": 2,
    "speed": 1,
    "results": 2,
    "tutorials/01_quickstart": 3,
    "tutorials/02_theory_to_code": 3,
    "tutorials/04_compare_with_sb3": 3,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """What `make docs` builds: a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(out / "doctrees")]
    built = subprocess.run([*command, str(ROOT / "docs"), str(out / "html")], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out / "html"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Not to pytest's output."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def open_browser(width: int, height: int) -> Iterator[tuple]:
    """A page of that size, and the list of what went wrong in it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER)
        page = browser.new_page(viewport={"width": width, "height": height})
        wrong: list[str] = []
        page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
        page.on(
            "response",
            lambda found: wrong.append(f"{found.status}: {found.url}") if found.status >= 400 else None,
        )
        page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("request", lambda request: wrong.append(f"network: {request.url}") if leaves(request.url) else None)
        try:
            yield page, wrong
        finally:
            browser.close()


def leaves(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "file://", "data:", "blob:"))


def pages_of(site: Path) -> list[str]:
    return sorted(
        str(path.relative_to(site).with_suffix("")) for path in site.rglob("*.html") if "_static" not in path.parts
    )


def test_site_has_every_page_and_source_code_to_read(site):
    pages = pages_of(site)
    assert {"index", "theory", "metrics", "deviations", "glossary", "howto/her", "resume", "export"} <= set(pages)
    assert "_modules/sb3_simple_ddpg/equations" in pages
    assert "y = r + gamma (1 - d) Q" in (site / "api.html").read_text("utf-8")  # docstrings are in


@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_every_page_is_drawn_whole_from_local_files_alone(site, address, width, height):
    with open_browser(width, height) as (page, wrong):
        for name in pages_of(site):
            if name.startswith("_modules/sb3_simple_ddpg/") and not name.endswith("equations"):
                continue  # source files are all made alike
            page.goto(f"{address}{name}.html", wait_until="load")
            sizes = page.evaluate(
                "[...document.querySelectorAll('math')].map(e => e.getBoundingClientRect())"
                ".map(box => [box.width, box.height])"
            )
            assert all(width > 0 and height > 5 for width, height in sizes), name
            assert len(sizes) >= MATHS.get(name, 0), name
            images = page.evaluate(
                "[...document.querySelectorAll('article img')]"
                ".map(e => [e.naturalWidth, e.getBoundingClientRect().width])"
            )
            assert all(natural > 0 and 0 < shown <= width for natural, shown in images), name
            assert len(images) >= FIGURES.get(name, 0), name
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            if not name.startswith("_modules"):
                text = page.inner_text("article") if page.query_selector("article") else ""
                assert "\\frac" not in text, name
                assert "$$" not in text, name
        assert not wrong


@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_pages_that_can_be_touched_move_within_a_second_from_file(site, width, height):
    """What their numbers are: `test_play.py`."""
    arm = "document.querySelector('.play-pendulum g').getAttribute('transform')"
    with open_browser(width, height) as (page, wrong):
        page.goto((site / "play.html").as_uri(), wait_until="load")
        page.wait_for_function(f"before => {arm} !== before", arg=page.evaluate(arm), timeout=1_000)
        page.goto((site / "knobs.html").as_uri(), wait_until="load")
        before = page.get_attribute("[data-measure=q]", "d")
        page.locator("input[type=range]").press("Home")
        page.wait_for_function(
            "before => document.querySelector('[data-measure=q]').getAttribute('d') !== before",
            arg=before,
            timeout=1_000,
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not wrong


@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")
def test_search_for_tau_finds_the_page_that_explains_it(address):
    with open_browser(1280, 900) as (page, wrong):
        page.goto(f"{address}search.html?q=tau")
        page.wait_for_selector("#search-results ul.search li a", timeout=20_000)
        page.wait_for_function("document.querySelector('.search-summary')?.innerText.includes('found')", timeout=20_000)
        links = page.eval_on_selector_all("#search-results ul.search li a", "found => found.map(link => link.href)")
        assert any("theory.html" in link for link in links)
        assert not wrong
