"""Hooks of the site: pages that lie outside of docs/ in the repository, and the links between all pages.

README.md, CHANGELOG.md, CONTRIBUTING.md, the measurements and the model cards are pages of the site too. Each stays
where it is in the repository, and its relative links are rewritten for the site. A link to a file that is no page of
the site, such as CITATION.cff, becomes plain text.
"""

import posixpath
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ("*.md", "benchmarks/*.md", "wsigen/**/README.md")  # pages, as patterns below the root of the repository
PICTURES = (".png", ".jpg")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)

PACKAGES = tempfile.TemporaryDirectory()  # holds the package of kernels/ under its name; removed when the build ends


@event_priority(100)  # before mkdocstrings reads its own settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let mkdocstrings read the packages of this checkout: `wsigen_kernels` is the folder `kernels`."""
    with suppress(FileExistsError):  # `mkdocs serve` comes here again after every change
        (Path(PACKAGES.name) / "wsigen_kernels").symlink_to(ROOT / "kernels")
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(ROOT), PACKAGES.name]
    return config


def in_site(path: str) -> str:
    """Place in the site of a file of the repository, both relative to their roots."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def in_repository(place: str) -> str:
    """Inverse of `in_site`."""
    if place == "index.md":
        return "README.md"
    return f"docs/{place}" if (ROOT / "docs" / place).exists() else place


def linked_files(path: Path) -> list[Path]:
    """Files of the repository that a page links to."""
    targets = [link["target"] for link in LINK.finditer(CODE.sub("", path.read_text(encoding="utf-8")))]
    return [target for target in ((path.parent / name).resolve() for name in targets) if target.is_file()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of docs/, and the pictures on them."""
    pages = [page for pattern in OUTSIDE for page in sorted(ROOT.glob(pattern))]
    pictures = {file for page in pages for file in linked_files(page) if file.suffix in PICTURES}
    for path in [*pages, *sorted(pictures)]:
        place = in_site(path.relative_to(ROOT).as_posix())
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the relative links of a page from the repository's paths to those of the site."""
    place = page.file.src_uri
    folder, site_folder = posixpath.dirname(in_repository(place)), posixpath.dirname(place)

    def rewritten(link: re.Match[str]) -> str:
        target = link["target"]
        if re.match(r"[a-z]+:", target):
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if not (ROOT / path).is_file():
            return link[0]  # the strict build reports it
        if files.get_file_from_path(in_site(path)) is None:
            return link["text"]
        relative = posixpath.relpath(in_site(path), site_folder or ".")
        return f"{link['image']}[{link['text']}]({relative}{link['anchor'] or ''})"

    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(rewritten, part) for part in parts[::2]]
    return "".join(parts)
