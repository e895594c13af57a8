"""The whole book as one PDF: the page of the builder `singlehtml`, printed by a headless Chromium.
Run by `make pdf`.

Folded code and folded checks are left out; all other code, outputs, figures and tables are in,
folded tables and answers unfolded.
"""

import logging
import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Error, Playwright, sync_playwright
from pypdf import PdfReader, PdfWriter

logging.getLogger("pypdf").setLevel(logging.ERROR)  # it counts objects otherwise than Chromium
BUILD = Path(__file__).resolve().parent / "_build"
STYLE = """
@page { size: A4; margin: 17mm 17mm 20mm;
  @bottom-center { content: counter(page); font: 9pt sans-serif; color: #555; } }
@page :first { @bottom-center { content: none; } }
body { line-height: 1.45; }
.bd-main .bd-content { margin: 0 !important; }
.bd-main .bd-content .bd-article-container { max-width: none; }
.bd-main .bd-content .bd-article-container .bd-article { padding: 0; }
.bd-article > section > h1, .toctree-wrapper > p.caption { display: none; }
.bd-article > section, .toctree-wrapper > section { break-before: page; }
.toctree-wrapper > section > h2 { font-size: 2.3rem; margin-top: 0; }
thead, .admonition { break-inside: avoid; }
figure img { object-fit: contain; max-height: 120mm !important; }
h1, h2, h3, h4 { break-after: avoid; }
p { orphans: 3; widows: 3; }
.bd-article div.math mjx-container { font-size: 119% !important; }
a { text-decoration: none !important; }
#jb-print-toc { line-height: 1.25; columns: 2; column-gap: 2.5rem; font-size: .9em; }
#jb-print-toc h2 { column-span: all; }
#jb-print-toc a { display: flex; justify-content: space-between; padding: .1rem 0; color: inherit; }
#jb-print-toc a::after { content: attr(data-page); }
#jb-print-toc :is(ul, li) { list-style: none !important; padding: 0; margin: 0 !important; }
#jb-print-toc ul ul { padding-left: 2rem; font-size: .9em; break-inside: avoid; }
#jb-print-toc p.caption { font-weight: bold; margin: .6rem 0 .2rem; break-after: avoid; }
"""

# What a page needs before it is printed. Returns the headings: title, level and the anchor that the
# contents link to.
PREPARE = """async () => {
  await MathJax.startup.promise;
  document.querySelectorAll("details.hide").forEach(folded => {
    const outputs = [...folded.querySelectorAll(".cell_output")];
    folded.replaceWith(...outputs.filter(output => output.querySelector("table")));
  });
  document.querySelectorAll(".headerlink, button").forEach(e => e.remove());
  document.querySelectorAll("details").forEach(e => { e.open = true; });
  document.querySelectorAll(".toggle-hidden").forEach(e => e.classList.remove("toggle-hidden"));
  await Promise.all([...document.images].map(image => {
    image.loading = "eager";
    return image.decode();
  }));

  const article = document.querySelector("article"), wide = article.clientWidth;
  // What is wider than the paper is made smaller.
  article.querySelectorAll("div.math mjx-math, table").forEach(e => {
    if (e.scrollWidth > wide) e.closest("div.math, table").style.zoom = wide / e.scrollWidth;
  });

  // One page now: links between pages become links within it. The same automatic names came from
  // several pages.
  document.querySelectorAll("div.citation").forEach(e => { e.id = "citation-" + e.id; });
  document.querySelectorAll('a[href*="index.html#"]').forEach(a => {
    const name = a.hash.slice(1);
    const kind = document.getElementById("citation-" + name) ? "citation-" : "";
    a.setAttribute("href", "#" + kind + name);
  });

  // The contents: the introduction, then the parts with their chapters and sections.
  const headings = [];
  const entry = (heading, level) => {
    heading.id = "heading-" + headings.length;
    headings.push([heading.textContent.trim(), level, heading.id]);
    return `<a href="#${heading.id}"><span>${heading.innerHTML}</span></a>`;
  };
  const chapter = section => `<li>${entry(section.querySelector("h2"), 0)}<ul>` +
    [...section.querySelectorAll(":scope > section > :is(h2, h3)")]
      .map(h => `<li>${entry(h, 1)}</li>`).join("") + "</ul></li>";
  const introduction = article.querySelector(":scope > section");
  introduction.querySelector("h1").outerHTML = "<h2>Introduction</h2>";
  const opening = chapter(introduction);
  const captions = [...document.querySelectorAll(".bd-docs-nav p.caption")].map(e => e.textContent);
  const parts = [...article.querySelectorAll(".toctree-wrapper")].map((part, n) =>
    `<p class="caption">${captions[n]}</p><ul>` +
    [...part.querySelectorAll(":scope > section")].map(chapter).join("") + "</ul>");
  document.querySelector("#jb-print-toc").innerHTML =
    `<h2>Contents</h2><ul>${opening}</ul>${parts.join("")}` +
    "<p><em>The code that draws the figures is left out here; the notebooks have it.</em></p>";
  return headings;
}"""
NUMBER = """pages => document.querySelectorAll("#jb-print-toc a").forEach(
  a => { a.dataset.page = pages[a.hash.slice(1)]; })"""


def open_browser(playwright: Playwright) -> Browser:
    """The browser that $CHROMIUM names, else one of this machine, else playwright's own;
    playwright's Error if there is none.
    """
    program = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    return playwright.chromium.launch(executable_path=program)


def print_book(browser: Browser, page: Path, target: Path) -> int:
    """Print the page twice, the second time with the page numbers of the first in its contents;
    returns their number.
    """
    styled = page.with_name("print.html")
    styled.write_text(
        page.read_text().replace("</head>", f"<style>{STYLE}</style></head>", 1)
    )  # before formulas are set
    target.parent.mkdir(parents=True, exist_ok=True)
    view = browser.new_page(viewport={"width": 665, "height": 1000})  # A4 less the margins
    view.set_default_timeout(600_000)  # milliseconds, for a busy machine
    view.emulate_media(media="print")
    view.goto(styled.as_uri())
    headings = view.evaluate(PREPARE)
    for _ in range(2):
        view.pdf(path=target, prefer_css_page_size=True, print_background=True)
        written = PdfReader(target)
        pages = {
            name.lstrip("/"): written.get_destination_page_number(place)
            for name, place in written.named_destinations.items()
        }
        view.evaluate(NUMBER, {name: number + 1 for name, number in pages.items()})
    view.close()
    book = PdfWriter(clone_from=written)
    above = None
    for title, level, name in headings:
        above = book.add_outline_item(
            title=title, page_number=pages[name], parent=above if level else None
        )
    book.write(target)
    return len(written.pages)


if __name__ == "__main__":
    target = BUILD / "pdf" / "book.pdf"
    try:
        with sync_playwright() as playwright:
            browser = open_browser(playwright)
            if sys.argv[1:] == ["--browser"]:  # only see whether there is one
                print(f"== the browser is Chromium {browser.version}")
            else:
                page = BUILD / "singlehtml" / "index.html"
                print(f"{print_book(browser, page, target)} pages in {target}")
    except Error as error:
        sys.exit(f"error: {error}")
