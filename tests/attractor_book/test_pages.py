"""The built book as a reader meets it: pages opened from disk in a browser with no network, links,
search, what sharing shows.
"""

import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import docstrings
import logo
import matplotlib.image
import pages
import pytest
import yaml
from bs4 import BeautifulSoup

import attractor_book
import attractor_lib

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
pytestmark = pytest.mark.slow  # they build the book
CONFIG, TOC = (yaml.safe_load((ROOT / name).read_text()) for name in ("_config.yml", "_toc.yml"))
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
OWNER, NAME = urlparse(CONFIG["repository"]["url"]).path.strip("/").split("/")
SITE = f"https://{OWNER}.github.io/{NAME}/"


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The folder of the book, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("book")
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        ROOT / "book",
        "-W",
        "--keep-going",
        "--path-output",
        folder,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def parsed(html):
    """Every HTML file, parsed."""
    return {
        path.relative_to(html).as_posix(): BeautifulSoup(path.read_text(), "html.parser")
        for path in html.rglob("*.html")
        if "_static" not in path.parts
    }


@pytest.fixture
def page(browser):
    """A tab with no network; what it complains about is in `page.complaints`, which has to be empty
    in the end.
    """
    context = browser.new_context(
        offline=True, color_scheme="light", viewport={"width": 1280, "height": 900}
    )
    page = context.new_page()
    page.complaints = []
    page.on(
        "console",
        lambda message: (
            message.type in ("error", "warning") and page.complaints.append(message.text)
        ),
    )
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda request: page.complaints.append(f"failed: {request.url}"))
    yield page
    assert not page.complaints
    context.close()


def test_the_book_has_every_page_of_the_table_of_contents_and_what_surrounds_them(html, parsed):
    assert {f"{name}.html" for name in PAGES} <= set(parsed)
    assert {f"{name}.html" for name in ("404", "search", "genindex")} <= set(parsed) and (
        html / "sitemap.xml"
    ).exists()


def test_a_word_opens_its_definition_where_it_stands(html, page):
    page.goto((html / "notebooks" / "01_local_energies.html").as_uri())
    word = page.locator("a[aria-expanded]", has_text="vector spin").first
    definition = word.locator("xpath=following-sibling::*[1]")
    assert not definition.is_visible()
    word.click()
    assert definition.is_visible() and "norm 1" in definition.inner_text()
    word.click()
    assert not definition.is_visible()
    note = page.locator(".notation").first  # in the margin, beside the equation
    assert note.bounding_box()["x"] > page.locator(".bd-article p").first.bounding_box()["width"]


@pytest.mark.parametrize("name", [*PAGES, "genindex"])
def test_a_page_opens_from_disk_with_its_formulas_and_fits_a_phone_and_paper(html, page, name):
    page.goto((html / f"{name}.html").as_uri())
    page.evaluate("window.MathJax ? MathJax.startup.promise : null")
    # MathJax shows a macro that it does not know in red, other errors as an element of their own.
    formulas, rendered, wrong = page.evaluate("""['.math', '.math mjx-container',
                          'mjx-merror, mjx-container [style*="color: red"]']
                                                 .map(s => document.querySelectorAll(s).length)""")
    assert (rendered, wrong) == (formulas, 0)
    assert (
        page.evaluate(
            "[...document.images].filter(i => i.loading != 'lazy' && !i.naturalWidth)"
            ".map(i => i.src)"
        )
        == []
    )
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 less Chromium's margins
    page.emulate_media(media="print")
    cut_off = """[...document.querySelectorAll('.bd-article :is(pre, table, img, mjx-container)')]
                 .filter(e => Math.max(e.getBoundingClientRect().right,
                                        e.getBoundingClientRect().left + e.scrollWidth) > 719)
                 .map(e => e.outerHTML.slice(0, 200))"""
    assert page.evaluate(cut_off) == []


def test_a_formula_wider_than_a_phone_is_made_smaller_and_what_is_too_wide_still_fades(html, page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto((html / "notebooks/01_local_energies.html").as_uri())
    formula = page.locator("div.math mjx-container").first
    page.wait_for_function(
        "box => box.style.zoom && box.style.zoom < 1", arg=formula.element_handle()
    )
    assert 0.66 < float(formula.evaluate("box => box.style.zoom")) < 1
    page.wait_for_selector("div.math mjx-container.more-to-come")
    wide = page.locator("div.math mjx-container.more-to-come").first.element_handle()
    wide.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    page.wait_for_function("box => !box.classList.contains('more-to-come')", arg=wide)
    page.set_viewport_size({"width": 1600, "height": 844})
    page.wait_for_function("box => !box.style.zoom", arg=formula.element_handle())


@pytest.mark.parametrize(
    "name, figure",
    [
        ("index", "worked-memories"),
        ("notebooks/04_masked_prediction", "worked-hidden"),
        ("notebooks/05_denoising", "worked-noise"),
        ("notebooks/06_transient_memories", "worked-gamma-beta"),
        ("notebooks/13_memories_that_stay", "worked-completion"),
    ],
)
def test_a_worked_figure_of_the_book_moves_with_its_controls(html, page, name, figure):
    page.goto((html / f"{name}.html").as_uri())
    worked = page.locator(f"#{figure}")
    shown = """root => [...root.querySelectorAll('.worked-image svg')]
        .map(e => e.getAttribute('viewBox')).concat(
                       [...root.querySelectorAll('.worked-number')].map(e => e.textContent))"""
    first = worked.evaluate(shown)
    worked.get_by_role("button", name="Step").click()
    stepped = worked.evaluate(shown)
    worked.locator("[data-control]").first.press(
        "ArrowDown" if worked.locator("select").count() else "ArrowRight"
    )
    assert len({tuple(seen) for seen in (first, stepped, worked.evaluate(shown))}) == 3


def test_the_theme_button_turns_the_page_dark_and_back_and_paper_is_light(html, page):
    page.goto((html / "index.html").as_uri())
    seen = {}
    for _ in range(3):
        page.locator(".article-header-buttons .theme-switch-button").click()
        mode, theme, colour = page.evaluate("""(({mode, theme}) =>
                          [mode, theme, getComputedStyle(document.body).backgroundColor])
                                               (document.documentElement.dataset)""")
        seen[mode] = theme, colour
    assert set(seen) == {"light", "dark", "auto"} and seen["auto"] == seen["light"] != seen["dark"]
    assert [theme for theme, _ in (seen["light"], seen["dark"])] == ["light", "dark"]
    page.evaluate("""() => { const page = document.documentElement; page.dataset.theme = "dark";
                             addEventListener("beforeprint",
                                               () => { window.printed = page.dataset.theme; });
                           }""")
    page.pdf()
    assert page.evaluate("[window.printed, document.documentElement.dataset.theme]") == [
        "light",
        "dark",
    ]


def test_the_search_finds_a_term_from_disk(html, page):
    page.goto((html / "index.html").as_uri())
    buttons = page.locator(".search-button-field, .search-button").filter(visible=True)
    assert buttons.count() == 1
    buttons.click()
    page.keyboard.type("pseudo-inverse")
    page.keyboard.press("Enter")
    page.locator("#search-results a[href*='09_synthetic_patterns.html']").first.click()
    assert "pseudo-inverse" in page.locator("article").inner_text().lower()


def test_menu_and_contents_open_on_a_phone(html, page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto((html / "notebooks/12_ablations.html").as_uri())
    menu, contents = (
        page.locator(name).filter(visible=True) for name in (".primary-toggle", ".secondary-toggle")
    )
    menu.click()
    page.locator("dialog[open]").get_by_role("link", name="Transient memories").wait_for()
    page.keyboard.press("Escape")
    contents.click()
    page.locator("dialog[open]").get_by_role("link", name="Three seeds").click()
    assert page.url.endswith("#three-seeds")


def test_the_menu_makes_room_on_a_desk_and_comes_back(html, page):
    page.goto((html / "notebooks/12_ablations.html").as_uri())
    for right in ("<= 0", "> 0"):
        page.locator(".primary-toggle").filter(visible=True).click()
        page.wait_for_function(
            f"document.querySelector('.bd-sidebar-primary').getBoundingClientRect().right {right}"
        )


def test_no_line_begins_with_what_stands_behind_a_formula(html, page):
    page.goto((html / "notebooks/11_failure_signatures.html").as_uri())
    page.evaluate("MathJax.startup.promise")
    kept = page.locator("span[style*=nowrap] > span.math")
    assert kept.count() > 10
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        assert (
            kept.evaluate_all("""formulas => formulas.filter(formula => {
            const mark = document.createRange();
            mark.selectNode(formula.nextSibling);
            return mark.getBoundingClientRect().left
                   < formula.getBoundingClientRect().right - 2; }).length""")
            == 0
        )


def test_an_unknown_address_shows_a_page_in_the_look_of_the_book(html, page):
    def serve(route):
        path = html / unquote(urlparse(route.request.url).path).removeprefix(f"/{NAME}/")
        route.fulfill(path=path if path.is_file() else html / "404.html")

    page.context.route(f"{SITE}**", serve)
    page.goto(f"{SITE}notebooks/never/written.html")
    assert page.locator("article h1").inner_text() == "Page not found"
    assert page.evaluate("[...document.images].every(i => i.naturalWidth)")
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.bd-header')).display") == "none"
    )  # the book's own style is there
    page.get_by_role("link", name="1. Local energies").click()
    assert (
        page.url == f"{SITE}notebooks/01_local_energies.html"
        and "Local energies" in page.locator("article h1").inner_text()
    )


def test_every_link_and_anchor_inside_the_book_resolves(html, parsed):
    anchors = {name: {tag["id"] for tag in soup.select("[id]")} for name, soup in parsed.items()}
    wrong, checked = [], 0
    for name, soup in parsed.items():
        for tag in soup.select(
            "a[href], link[href], img[src], script[src], source[src], video[src]"
        ):
            url = urlparse(tag.get("href") or tag.get("src"))
            if url.scheme or url.netloc:
                continue
            checked += 1
            path = unquote(url.path)
            if path.startswith("/"):  # on the 404 page
                target = (html / path.removeprefix(f"/{NAME}/")).resolve()
            else:
                target = ((html / name).parent / path if path else html / name).resolve()
            known = anchors.get(
                target.relative_to(html.resolve()).as_posix(), {unquote(url.fragment)}
            )  # not asked of other files
            if not target.is_file() or url.fragment and unquote(url.fragment) not in known:
                wrong.append(f"{name}: {url.geturl()}")
    assert not wrong and checked > 1000


def test_every_image_has_an_alternative_text(parsed):
    images = [(name, image) for name, soup in parsed.items() for image in soup.find_all("img")]
    assert (
        len(images) > 50
        and [
            f"{name}: {image.get('src')}"
            for name, image in images
            if not image.get("alt", "").strip()
        ]
        == []
    )


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_can_be_launched_and_downloaded(html, parsed, name):
    links = [a["href"] for a in parsed[f"{name}.html"].select(".article-header-buttons a[href]")]
    assert f"https://mybinder.org/v2/gh/{OWNER}/{NAME}/main?urlpath=lab/tree/{name}.ipynb" in links
    assert (
        f"https://colab.research.google.com/github/{OWNER}/{NAME}/blob/main/{name}.ipynb" in links
    )
    (download,) = (
        link for link in links if link.endswith(".ipynb") and not link.startswith("http")
    )
    assert (html / name).parent.joinpath(download).read_bytes() == (
        ROOT / f"{name}.ipynb"
    ).read_bytes()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_to_show_where_it_is_shared(html, parsed, name):
    soup = parsed[f"{name}.html"]
    head = {tag["property"]: tag["content"] for tag in soup.select("meta[property]")}
    assert head["og:url"] == soup.select_one("link[rel=canonical]")["href"] == f"{SITE}{name}.html"
    assert (
        head["og:site_name"] == CONFIG["title"]
        and head["og:title"]
        and not re.search(r"&#|\\", head["og:description"])
    )
    assert matplotlib.image.imread(html / head["og:image"].removeprefix(SITE)).shape[:2] == (
        600,
        1146,
    )


def test_a_page_says_when_it_was_last_changed(parsed):
    def git(*arguments):
        environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment
        ).stdout.strip()

    if not shutil.which("git") or git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("no git history here: the pages have no dates")
    for name in CHAPTERS:
        date = git(
            "log", "-1", "--format=%ad", "--date=format-local:%d %B %Y", "--", f"{name}.ipynb"
        )
        assert date and date in parsed[f"{name}.html"].select_one(".last-updated").text


def test_the_sitemap_lists_the_pages_of_the_book(html):
    assert set(re.findall("<loc>(.*?)</loc>", (html / "sitemap.xml").read_text())) == {
        f"{SITE}{name}.html" for name in PAGES
    }


def test_a_machine_without_git_builds_pages_without_dates():
    env = SimpleNamespace(git_last_updated={"dated": ("1700000000", True), "undated": None})
    pages.allow_no_dates(None, env)
    assert env.git_last_updated == {"dated": ("1700000000", True), "undated": (None, True)}


def test_all_addresses_follow_from_that_of_the_repository():
    config = SimpleNamespace(
        html_theme_options={"repository_url": "https://github.com/someone/fork/"}
    )
    pages.derive_addresses(None, config)
    assert (
        config.html_baseurl == config.ogp_site_url == "https://someone.github.io/fork/"
        and config.notfound_urls_prefix == "/fork/"
    )
    assert "https://someone.github.io/fork/book.pdf" in config.html_theme_options["extra_footer"]


def test_the_library_page_has_every_public_name_in_the_order_of_the_readme(parsed):
    tables = re.findall(r"^\| `(attractor_\w+)` \|.*?\n\n", README, re.MULTILINE | re.DOTALL)
    assert tables == ["attractor_lib", "attractor_book"]
    listed = []
    for package in tables:
        table = README.split(f"| `{package}` |")[1].split("\n\n")[0]
        rows = re.findall(r"^\| (`\w.*?`) \|", table, re.MULTILINE)
        listed += [f"{package}.{name}" for row in rows for name in re.findall(r"`([\w.]+)`", row)]
    there = {
        module.name
        for package in (attractor_lib, attractor_book)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    }
    assert set(listed) == {name for name in there if not name.endswith("__main__")}
    ids = [tag["id"] for tag in parsed["api.html"].select("[id*=attractor_]")]
    shown = [name.removeprefix("module-") for name in ids if name.startswith("module-")]
    assert shown == listed
    for module in listed:
        for name, value in vars(importlib.import_module(module)).items():
            own = (getattr(value, "__module__", None), getattr(value, "__name__", None))
            shows = inspect.isroutine(value) or inspect.isclass(value)  # not what numba compiles
            if own == (module, name) and shows and not name.startswith("_") and name != "main":
                assert f"{module}.{name}" in ids, f"{module}.{name} has no docstring"


def test_marks_of_docstrings():
    shown = docstrings.inline("**fixed point** x**2 *a, `diagnose` in 11_failure_signatures")
    chapter = ":doc:`/notebooks/11_failure_signatures`"
    assert shown == r"**fixed point** x\*\*2 \*a, :py:obj:`diagnose` in " + chapter


def test_equations_of_docstrings_keep_their_line_breaks(parsed):
    """What is indented after two colons in a class's docstring is a block of the page, line for
    line.
    """
    for module, name in (
        ("model", "AttractorNetwork"),
        ("learning.own_trajectory", "PersistentTrajectories"),
        ("hopfield", "ModernHopfield"),
    ):
        docstring = inspect.getdoc(
            getattr(importlib.import_module(f"attractor_lib.{module}"), name)
        )
        equation = inspect.cleandoc(re.search(r"::\n\n(    .*?)\n\n", docstring, re.DOTALL)[1])
        shown = (
            parsed["api.html"]
            .find(id=f"attractor_lib.{module}.{name}")
            .find_next_sibling("dd")
            .find("pre")
            .text
        )
        assert shown.rstrip() == equation and "\n" in equation


def test_the_logo_is_what_the_code_draws(tmp_path):
    logo.write(tmp_path)
    static = ROOT / "book" / "_static"
    assert (tmp_path / "logo.svg").read_text() == (static / "logo.svg").read_text()
    assert (
        matplotlib.image.imread(tmp_path / "logo.png")
        == matplotlib.image.imread(static / "logo.png")
    ).all()
