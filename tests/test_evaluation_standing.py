"""Which results are a table's rows, and whose numbers compete for the best of a column."""

import json

from evaluation_results import STATED, result, stating

from gap3d.evaluation.history import columns_of
from gap3d.evaluation.result import Cell
from gap3d.evaluation.retrieved import LABEL
from gap3d.evaluation.standing import apart, bests, newest


def made(model="finetuned", value=180.0, samples=1250, good=None, evaluation=None, **fields):
    """A result of one column, with these settings of the evaluation in place of the paper's."""
    cells = {"fd_dinov2": Cell(value, samples=samples if good is None else good)}
    settings = {"evaluation": {**STATED["settings"]["evaluation"], **(evaluation or {})}}
    return result("generation", model, "toys4k", cells, samples=samples, settings=settings, **fields)


def best_of(*results):
    """The models whose number is bold."""
    found = bests(results, columns_of(results))["fd_dinov2"]
    return [each.model for each in results if each.fingerprint in found]


def test_the_baseline_that_retrieves_never_competes():
    retrieved = made(f"retrieved by finetuned: {LABEL}", 12.0, protocol={"generated": {"kind": "retrieved"}})
    first, second = made("pretrained", 190.0), made("finetuned", 180.0)
    assert best_of(first, second, retrieved) == ["finetuned"]
    assert best_of(second, retrieved) == []


def test_only_numbers_of_as_many_samples_compete():
    full, other, glance = made("pretrained", 190.0), made("finetuned", 180.0), made("mine", 20.0, samples=5)
    assert best_of(full, other, glance) == ["finetuned"]
    assert best_of(full, glance) == []
    assert best_of(full, made("half", 1.0, good=600)) == []
    assert best_of(full, made("but one", 1.0, good=1249)) == ["but one"]


def test_numbers_of_other_extractors_do_not_compete_and_the_models_own_steps_do():
    full, other = made("pretrained", 190.0), made("mine", 20.0, evaluation={"dinov2_size": 224})
    assert best_of(full, other) == []
    assert (
        best_of(full, made("mine", 20.0, evaluation={"steps": 8}))
        == ["mine"]
        == best_of(made("mine", 20.0, evaluation={"steps": 8}), full)
    )


def rows(*results):
    """The places of results among these that are rows, in their order."""
    return [results.index(each) for each in newest(results)]


def test_a_glance_hides_no_full_measurement_and_a_full_one_takes_its_place():
    full, glance, again = made(), made(samples=5), made(samples=1250)
    assert rows(full, glance) == [0, 1]
    assert rows(glance, full) == [1, 0] and rows(glance, again) == [1]
    assert rows(full, glance, again) == [2]


def test_a_measurement_of_other_settings_hides_none_and_says_what_is_other():
    full, small = made(), made(evaluation={"dinov2_size": 224})
    assert rows(full, small) == [1, 0]
    assert [apart(each, [full, small]) for each in (full, small)] == [{"dinov2_size": 518}, {"dinov2_size": 224}]
    drawn = [result(protocol=stating("retrieval", captions=captions)) for captions in ("all", "longest")]
    assert rows(*drawn) == [1, 0]
    seeded = [made(evaluation={"seed": seed}) for seed in (0, 1)]
    assert rows(*seeded) == [1]


def test_the_last_checkpoint_of_a_training_takes_the_place_of_the_others():
    steps = [result(step=step) for step in (3000, 100, 2000)]
    assert rows(*steps) == [0]
    assert json.dumps(apart(steps[0], steps)) == "{}"
