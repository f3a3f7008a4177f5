"""Results as programs print them."""

from dataclasses import replace

from gap3d.evaluation.result import Cell
from pipelines.evaluation.printed import failed_checks, format_cell, found, heading
from tests.test_evaluation_results import RESULT


def test_a_cell_is_its_value_with_its_interval_or_why_there_is_none():
    assert format_cell(Cell(12.3456, 10, 15.5, 7), 2, " %") == "12.35 % [10.00, 15.50]"
    assert format_cell(Cell(1.0, note="few"), 3) == "1.000  (few)"
    assert format_cell(Cell(None, note="no depth"), 3) == "- (no depth)"


def test_a_heading_says_how_much_was_measured_and_what_brackets_are():
    made = heading(RESULT, "pairs")
    assert made[0] == f"{RESULT.model} on coco: 0 of 0 pairs; UNTRAINED: encoder"
    assert made[1:] == ["  as the released evaluation does it: batch_means", "  in brackets: 95 % confidence intervals"]


def test_only_a_baseline_that_retrieves_says_what_it_found():
    assert found({"kind": "trellis"}, 6) == []
    (line,) = found({"true_object_found": 1, "different_objects_found": 4}, 6)
    assert "found 1 of 6 times, 4 different objects" in line


def test_a_check_that_fails_is_told_with_its_reason_or_its_counts():
    checks = {
        "identity": {"passed": True, "applies": False, "note": "does not apply"},
        "encoder": {"passed": False, "note": "another encoder"},
        "objects": {"passed": False, "measured": 4, "expected": 6},
        "complete": {"passed": False, "measured": 1, "pairs": 2},
        "queries": {"passed": True, "measured": 6, "expected": 6},
    }
    assert failed_checks(replace(RESULT, checks=checks)) == [
        "  identity: does not apply",
        "  check failed: encoder: another encoder (see samples.parquet)",
        "  check failed: objects: 4 of 6 measured (see samples.parquet)",
        "  check failed: complete: 1 of 2 measured (see samples.parquet)",
    ]
