"""What README, CONTRIBUTING and docs/ name is there: files, headings, programs, settings."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from gap3d.evaluation.quirks import QUIRKS
from gap3d.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
METHOD = ROOT / "docs" / "method.md"
CODE = ["gap3d", "pipelines", "render", "assets_defs", "benchmarks", "tests"]
TEXTS = [path for top in CODE for kind in ("py", "toml") for path in (ROOT / top).rglob(f"*.{kind}")] + DOCUMENTS
NUMBERS = r"\d+(?:\.\d+)?(?:(?:, | and | to )\d+(?:\.\d+)?)*"
CITATION = re.compile(rf"docs/method\.md(?: ({NUMBERS}))?(?:, decisions? ({NUMBERS}))?")


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


def in_one_line(path):
    """Its text as one line: a citation may be broken, in a comment too."""
    return re.sub(r"\s+(# )?", " ", path.read_text())


def several(numbers):
    """``8, 12 and 19`` and ``4 to 7`` one by one."""
    for part in re.split(", | and ", numbers):
        first, _, last = part.partition(" to ")
        yield from map(str, range(int(first), int(last) + 1)) if last else [first]


def headings_and_decisions():
    text = METHOD.read_text()
    decisions = re.findall(r"^\| (\d+) \|", text.partition("\n## 9. ")[2], re.MULTILINE)
    return set(re.findall(r"^##+ ([\d.]*\d)\.? ", text, re.MULTILINE)), set(decisions)


def test_every_citation_of_the_method_names_a_heading_or_decision_that_is_there():
    headings, decisions = headings_and_decisions()
    cited = [(path, *found) for path in TEXTS for found in CITATION.findall(in_one_line(path))]
    assert len(cited) > 80
    wrong = [
        f"{named(path)}: {number}"
        for path, of_headings, of_decisions in cited
        for numbers, known in ((of_headings, headings), (of_decisions, decisions))
        for number in (several(numbers) if numbers else ())
        if number not in known
    ]
    assert not wrong
    own = re.findall(rf"decisions? ({NUMBERS})", in_one_line(METHOD))
    assert {number for numbers in own for number in several(numbers)} <= decisions


def test_nothing_cites_a_document_that_is_not_in_the_repository():
    cites = re.compile(r"specification\W+\d|\(decisions? \d")
    assert not [named(path) for path in TEXTS if path != METHOD and cites.search(in_one_line(path))]


def test_the_method_names_every_quirk_and_settings_with_the_values_they_have():
    text = in_one_line(METHOD)
    assert not {name for name in QUIRKS if f"`{name}`" not in text}
    presets = [tomllib.loads((ROOT / f"pipelines/presets/{name}.toml").read_text()) for name in ("paper", "objaverse")]
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    sections["*"] = sections["finetuning"]
    named_settings = re.findall(r"`([a-z_]+|\*)\.([a-z_0-9]+)(?:` = ([\d.,]*\d))?", text)
    settings = [each for each in named_settings if each[0] in sections and hasattr(sections[each[0]], "model_fields")]
    assert len(settings) > 50
    for section, name, value in settings:
        usual = [preset[section][name] for preset in presets if name in preset.get(section, {})]
        usual.append(sections[section].model_fields[name].default)
        assert not value or float(value.replace(",", "")) in usual, f"{section}.{name} = {value}, not {usual}"
