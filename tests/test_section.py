"""Types of settings: paths that hold anywhere, weights by name or place."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from gap3d.section import HomePlace, Place, Weights
from gap3d.settings import Settings


def test_weights_are_a_place_where_one_is_there_and_a_name_that_the_program_knows_never_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("facebook/dinov2-large", "point-e", "torchvision", "random-small", "mine"):
        Path(name).mkdir(parents=True)
    weights = TypeAdapter(Weights).validate_python
    assert weights("mine") == str(tmp_path / "mine")
    assert weights("facebook/dinov2-large") == str(tmp_path / "facebook/dinov2-large")
    for known in ("point-e", "torchvision", "random-small", "random-small-dinov3", "facebook/dinov2-base", "x" * 5000):
        assert weights(known) == known


def test_a_path_of_nobody_is_a_sentence_and_no_traceback():
    with pytest.raises(ValidationError, match="can't be found"):
        TypeAdapter(Place).validate_python("~nobody-of-this-name/store")


def test_what_lies_at_home_is_named_alike_for_everybody(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    here = Settings().source.annotations
    assert TypeAdapter(HomePlace).validate_python(str(here)) == here == Path("~/.objaverse")
    assert TypeAdapter(HomePlace).validate_python("tables").is_absolute()
