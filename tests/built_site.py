"""The site as it was built in docs/_build: `python -m pytest tests/built_site.py`, which .ci/run does after the build.

The browser is Debian's package `chromium`; without it those tests are skipped, and say so.
"""

import html
import json
import os
import re
import shutil
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

SITE = Path(__file__).parent.parent / "docs" / "_build"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)
LARGEST = 1_000_000  # bytes of a page with what it loads, without pictures


class Page(HTMLParser):
    """The links of a page, the files it loads, and its anchors."""

    def __init__(self, name):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], {""}
        self.feed((SITE / name).read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag == "img" and attributes.get("src"):
            self.links.append(attributes["src"])
        if tag == "script" and attributes.get("src"):
            self.loaded.append(attributes["src"])
        if tag == "link" and attributes.get("rel") in ("stylesheet", "preload", "icon", "modulepreload"):
            self.loaded.append(attributes["href"])


PARSED = {name: Page(name) for name in PAGES}


def is_elsewhere(link):
    return re.match(r"\w+:|//", link)


def test_there_are_pages():
    assert PAGES, "build the site first"
    assert {"index.html", "search.html", "reference/training.html", "gallery/rbm_digits.html"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_links_have_targets(name):
    for link in PARSED[name].links:
        if is_elsewhere(link):
            continue
        path, anchor = urldefrag(unquote(link.split("?")[0]))
        target = (SITE / name).parent / path if path else SITE / name
        assert target.is_file(), link
        if target.suffix == ".html":
            assert anchor in PARSED[target.resolve().relative_to(SITE).as_posix()].anchors, link


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_small_and_loads_nothing_from_elsewhere(name):
    loaded = {link.split("?")[0] for link in PARSED[name].loaded}
    assert not [link for link in loaded if is_elsewhere(link)]
    files = {((SITE / name).parent / link).resolve() for link in loaded} | {SITE / name}
    if any(path.name == "set_math.js" for path in files):  # with fonts for letters and symbols
        katex = SITE / "_static" / "katex"
        fonts = [f"fonts/KaTeX_{font}.woff2" for font in ("Main-Regular", "Main-Bold", "Math-Italic", "AMS-Regular")]
        files |= {katex / file for file in ("katex.min.js", "katex.min.css", *fonts)}
    assert sum(path.stat().st_size for path in files) < LARGEST


def test_styles_load_nothing_from_elsewhere():
    for path in SITE.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)\s]*", path.read_text()), path


# Opens every page at the width of a phone, and lists those that are wider.
NARROW_PAGE = f"narrow-{os.getpid()}.html"  # each worker of pytest writes its own
NARROW = """<!doctype html><body><iframe width=390 height=800></iframe><pre id=wide></pre><script>
const frame = document.querySelector("iframe"), pages = %s;
const next = () => { if (pages.length) frame.src = pages.pop(); else document.getElementById("wide").append("done"); };
frame.onload = () => {
  const root = frame.contentDocument.documentElement;
  if (root.scrollWidth > 390) document.getElementById("wide").append(frame.src + " " + root.scrollWidth + "\\n");
  next();
};
next();
</script>"""


# --- in a browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A function from the address of a page to its HTML after its scripts have run, and the bytes that it loaded."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on the path: apt-get install chromium")
    missing, sent = [], []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def send_error(self, code, *args, **kwargs):
            missing.append(self.path)
            super().send_error(code, *args, **kwargs)

        def send_header(self, keyword, value):
            if keyword == "Content-Length" and not self.path.endswith(".png"):
                sent.append(int(value))
            super().send_header(keyword, value)

    server = ThreadingHTTPServer(("localhost", 0), partial(Handler, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    (SITE / NARROW_PAGE).write_text(NARROW % json.dumps(PAGES))

    def open_(address):
        missing.clear()
        sent.clear()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
        profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
        command = [chromium, *options, profile, f"http://localhost:{server.server_port}/{address}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert [path for path in missing if path != "/favicon.ico"] == []
        return html.unescape(done.stdout), sum(sent)

    yield open_
    server.shutdown()
    server.server_close()
    (SITE / NARROW_PAGE).unlink()


def test_the_start_page_opens(opened):
    page, size = opened("index.html")
    for section in ("Start here", "Concepts", "How to", "Gallery", "Reference"):
        assert section in page
    assert size < LARGEST


def test_the_search_finds_a_name(opened):
    page, size = opened("search.html?q=Outcome")
    assert 'href="reference/training.html#paysage_jax.Outcome"' in page
    assert size < LARGEST


def test_a_program_of_the_gallery_opens(opened):
    page, size = opened("gallery/rbm_digits.html")
    assert "log-likelihood in nats per image" in page  # in the source, or printed
    assert size < LARGEST
    if not (SITE / "_images" / "sphx_glr_rbm_digits_001.png").exists():
        pytest.skip("the programs were not run in this build: no pictures to look for")
    assert 'src="../_images/sphx_glr_rbm_digits_001.png"' in page


def test_equations_are_set(opened):
    page, _ = opened("concepts/phases.html")
    assert 'class="katex"' in page
    assert "katex-error" not in page


def test_no_page_is_wider_than_a_phone(opened):
    page, _ = opened(NARROW_PAGE)
    assert re.search(r'<pre id="wide">(.*?)</pre>', page, re.DOTALL)[1] == "done"
