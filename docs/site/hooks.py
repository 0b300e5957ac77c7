"""What the site adds to the pages in this folder: those that lie elsewhere in the repository.

A link in Markdown is a path in the repository, so that it works wherever the files are read. The
site has the pages of `docs/` in its root, and there, too, what lies beside that folder; `README.md`
is its first page. So a link out of `docs/` has one `../` less on the site, one into it no `docs/`.
"""

import logging
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "profiling/README.md",
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("profiling/pictures/*.*"))),
]

LOADED = re.compile(
    r"<(?:link|script|img|iframe)\b[^>]*?\b(?:href|src)=\"?((?:https?:)?//[^\s\">]+)"
)

log = logging.getLogger("mkdocs.hooks")


def on_files(files, config):
    """Add the files from elsewhere."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for path in ELSEWHERE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Make the links those of the site."""
    address = page.file.src_uri
    up = "../" * address.count("/")
    outside = up + ("docs/" if address in ["index.md", *ELSEWHERE] else "../")
    return re.sub(rf"\]\({re.escape(outside)}", f"]({up}", markdown)


def on_post_page(output, page, config):
    """Warn of what a browser would load from elsewhere: the site needs no network."""
    for address in LOADED.findall(output):
        log.warning(f"{page.file.src_uri} loads {address}")
    return output.replace("dtype - like", "dtype-like")  # it was taken for a difference


def on_post_build(config):
    """Remove the site map: without an address it is empty, but for the time of the build."""
    for path in Path(config.site_dir).glob("sitemap.xml*"):
        path.unlink()
