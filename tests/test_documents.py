"""The documents of the repository: links lead to files, public names stand on a page, the citation is complete."""

import re
from pathlib import Path

import pytest
import yaml

import wsigen

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "wsigen/**/*.md") for path in ROOT.glob(pattern)
)
API = sorted(ROOT.glob("docs/api/*.md"))
LINK = re.compile(r"\]\(([^)\s]+)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def links(page: Path) -> list[str]:
    """Relative targets of a page's links and pictures, without the part after #; code is left out."""
    targets = LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    return [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]


def test_the_pages_have_links():
    assert len([target for page in PAGES for target in links(page)]) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page):
    assert not [target for target in links(page) if not (page.parent / target).exists()]


@pytest.mark.parametrize("name", sorted(set(wsigen.__all__) - {"__version__"}))
def test_a_public_name_stands_on_one_page_of_the_api(name):
    pages = [
        page for page in API if re.search(rf"^::: wsigen\.{name}$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(pages) == 1


def test_docstrings_are_markdown():
    role = re.compile(r":(class|func|meth|mod|data|attr|obj|exc|ref):`")
    sources = [
        path for folder in ("wsigen", "kernels", "configs", "benchmarks") for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    assert not [path for path in sources if role.search(path.read_text(encoding="utf-8"))]


def test_the_citation_names_the_software_and_the_paper_behind_it():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license", "references"} <= citation.keys()
    assert citation["title"] == "wsigen" and citation["authors"] == [{"name": "wsigen maintainers"}]
    for work in citation["references"]:
        assert {"type", "title", "authors", "year"} <= work.keys()
    assert "NASDM" in citation["references"][0]["title"]
