"""The addresses of the published pages, from the one address that _config.yml holds: the repository's on GitHub."""

from urllib.parse import urlparse


def derive(app, config):
    """https://github.com/OWNER/NAME is published at https://OWNER.github.io/NAME/: for the sitemap, social cards and the 404 page."""
    owner, name = urlparse(config.html_theme_options["repository_url"]).path.strip("/").split("/")
    config.html_baseurl = config.ogp_site_url = f"https://{owner}.github.io/{name}/"
    config.notfound_urls_prefix = f"/{name}/"


def setup(app):
    app.connect("config-inited", derive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
