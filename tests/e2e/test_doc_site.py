"""The documentation as a site: it builds strictly, and nothing of it comes from a network."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from shared_data import ROOT

BUILD = """\
import socket, sys
from mkdocs.__main__ import cli

def connect(*_):
    raise OSError("no network here")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = connect
cli(["build", "--strict", "--config-file", sys.argv[1], "--site-dir", sys.argv[2]])
"""
LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
SECTIONS = ("Tutorials", "How-to", "Reference", "Explanation")


class Loads(HTMLParser):
    """What a page loads by itself when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(LOADING.get(tag, ""))
        if address:
            self.addresses.append(address)


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BUILD, str(config), str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(site: Path) -> Iterator[tuple[Path, list[str]]]:
    for page in sorted(site.rglob("*.html")):
        loads = Loads()
        loads.feed(page.read_text())
        yield page, loads.addresses


def test_every_page_is_built_in_one_of_four_sections(site: Path) -> None:
    home = (site / "index.html").read_text()
    for section in SECTIONS:
        assert re.search(rf"^\s*{section}\s*$", home, re.MULTILINE), section
    written = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site).with_suffix(".md") for path, _ in pages(site)}
    assert written <= built


@pytest.mark.live
@pytest.mark.parametrize(
    ("page", "text"),
    [("lost.md", "# In no section"), ("load.md", "# Load\n\n[nowhere](nowhere.md)")],
    ids=["lost", "broken"],
)
def test_a_lost_page_or_a_broken_link_fails(page: str, text: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "docs" / page).write_text(text)
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0 and f"{Path(page).stem}.md" in done.stderr


def test_pages_load_files_of_the_site_alone(site: Path) -> None:
    for page, addresses in pages(site):
        assert len(addresses) > 3
        if page.name == "404.html":  # opens under any address: its paths begin at the root
            continue
        for address in addresses:
            path = address.partition("#")[0].partition("?")[0]
            assert (page.parent / path).is_file(), (page, address)
    for sheet in site.rglob("*.css"):
        text = sheet.read_text()
        assert not re.search(r"@import|url\([\"']?(https?:)?//", text), sheet


@pytest.mark.live
def test_in_a_browser_nothing_is_asked_of_a_network(site: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index.html", "tutorials/first_sizing.html", "reference/commands.html"):
            page.goto(f"file://{site / name}")
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.body.scrollWidth") <= 390
        browser.close()
    assert asked and all(address.startswith(("file:", "data:")) for address in asked)
