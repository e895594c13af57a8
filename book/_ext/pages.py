"""What the pages need and settings cannot say: addresses that follow from the repository's, no
script twice, no need of git.
"""

from urllib.parse import urlparse


def derive_addresses(app, config):
    """https://github.com/OWNER/NAME is published at https://OWNER.github.io/NAME/: for the sitemap,
    social cards, the 404 page and the PDF.
    """
    owner, name = urlparse(config.html_theme_options["repository_url"]).path.strip("/").split("/")
    config.html_baseurl = config.ogp_site_url = site = f"https://{owner}.github.io/{name}/"
    config.html_theme_options["extra_footer"] = (
        f'<a href="{site}book.pdf">The whole book as a PDF</a>'
    )
    config.notfound_urls_prefix = f"/{name}/"


def drop_repeated_scripts(app, pagename, templatename, context, doctree):
    """Sphinx repeats inline scripts that an extension adds late, and sphinx_thebe's declares
    constants: an error in the browser.
    """
    same = [(script.filename or "", script.attributes) for script in context["script_files"]]
    context["script_files"] = [
        script for n, script in enumerate(context["script_files"]) if same[n] not in same[:n]
    ]


def allow_no_dates(app, env):
    """On a machine without git, sphinx_last_updated_by_git leaves its table unfilled, and the theme
    then fails.
    """
    for page, dated in env.git_last_updated.items():
        env.git_last_updated[page] = dated or (None, True)


def setup(app):
    app.connect("config-inited", derive_addresses)
    app.connect("env-updated", allow_no_dates, priority=900)
    app.connect("html-page-context", drop_repeated_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
