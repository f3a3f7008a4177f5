"""What README, CONTRIBUTING and docs/ name is there: files, headings, programs, settings."""

import importlib.util
import re
from pathlib import Path

import pytest

from gap3d.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]


def prose(document):
    """The text without blocks of code."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(document):
    """What its headings are called in links, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named(document):
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(found), f"{target}: no such heading"


def test_every_document_is_reached_from_the_readme():
    assert {ROOT / path for path in re.findall(r"\]\((docs/\w+\.md)", prose(ROOT / "README.md"))} == set(PAGES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_program_and_setting_that_is_named_exists(document):
    text = document.read_text()
    for module in re.findall(r"python -m ([a-z_.]+[a-z_])", text):
        assert importlib.util.find_spec(module), f"python -m {module}"
    for section, name in re.findall(r"--(?:no-)?([a-z_]+)\.([a-z_]+)", text):
        assert name in Settings.model_fields[section].annotation.model_fields, f"--{section}.{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_source_that_is_named_exists(document):
    for path in re.findall(r"`((?:gap3d|render|pipelines|assets_defs|tests)/[\w/.-]+)", prose(document)):
        assert (ROOT / path).exists(), path
