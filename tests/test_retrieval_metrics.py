"""Table 2 and Figure 2: recall of token sets in shards against brute force, rows of what fails, the released quirks."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gap3d.evaluation import tokens
from gap3d.evaluation.queries import Query
from gap3d.evaluation.query_table import matched, read_queries
from gap3d.evaluation.retrieval import database_of, kinds_of, measure, pool
from gap3d.evaluation.retrieval_figure import chosen
from gap3d.evaluation.tokens import open_tokens
from gap3d.evaluation_settings import EvaluationSettings
from gap3d.metrics import retrieval as ranks
from gap3d.records import Status

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH = 4
SECTION = EvaluationSettings(resamples=200)


def signs(seed, count):
    """Vectors of +1 and -1: of length 2, so that cosines are exact, and most have equals. int [count, WIDTH]."""
    return np.random.default_rng(seed).choice([-1, 1], (count, WIDTH))


def shard(folder, keys, cls, patches):
    """A shard of token sets with the given CLS and mean patch: patches are that mean plus and minus one."""
    folder.mkdir(parents=True, exist_ok=True)
    around = np.stack([patches + 1, patches - 1], axis=1).astype(np.float32)
    kinds = {} if cls is None else {"cls": np.asarray(cls, np.float32)}
    np.savez(folder / "sets.npz", keys=np.array(keys), patches=around, **kinds)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """61 images of which some are equal, 97 queries, several of one image, in shards; and the same as whole numbers."""
    root = tmp_path_factory.mktemp("retrieval")
    images = [f"i{number:02d}" for number in range(61)]
    truth = np.random.default_rng(7).integers(0, 50, 97)  # no query means the last images
    queries = [Query(f"i{t:02d}#{n}", f"i{t:02d}", f"text {n}", n, n) for n, t in enumerate(truth)]
    true = {"cls": signs(1, 61), "patches": signs(2, 61)}
    noise = {"cls": signs(3, 97), "patches": signs(4, 97)}
    keep = np.random.default_rng(5).random((97, WIDTH)) < 0.6
    asked = {kind: np.where(keep, true[kind][truth], noise[kind]) for kind in true}
    shard(root / "true", images, true["cls"], true["patches"])
    shard(root / "predicted", [each.key for each in queries][::-1], asked["cls"][::-1], asked["patches"][::-1])
    return SimpleNamespace(root=root, images=images, queries=queries, true=true, asked=asked)


def found_in(data, section=SECTION, queries=None, predicted="predicted", true="true"):
    """What is measured of shards."""
    queries = queries or data.queries
    with open_tokens(data.root / predicted) as mine, open_tokens(data.root / true) as theirs:
        kinds = kinds_of(mine, theirs)
        precision = "float16" if "float16_vectors" in section.quirks else "float32"
        sought = pool(mine, [each.key for each in queries], kinds, precision)
        return measure(queries, sought, pool(theirs, database_of(queries, theirs.keys), kinds, precision), section)


def sorted_images(data, kind, order=None):
    """For every query the images, most similar first, equal ones in the order of the database: by Python's sort."""
    order = order or database_of(data.queries, data.images)
    place = [data.images.index(key) for key in order]
    similar = (data.asked[kind] @ data.true[kind][place].T).tolist()
    return [[order[n] for n in sorted(range(len(order)), key=lambda n, row=row: (-row[n], n))] for row in similar]


@pytest.mark.parametrize("kind", ["cls", "patches"])
def test_recalls_are_those_of_sorting_everything_with_ties_by_the_order_of_the_database(data, kind):
    found = found_in(data)
    wanted = [1 + row.index(each.truth) for row, each in zip(sorted_images(data, kind), data.queries, strict=True)]
    assert found.ranks[kind].tolist() == wanted
    assert [sample.values[f"rank_{kind}"] for sample in found.samples] == wanted
    assert [sample.key for sample in found.samples] == [each.key for each in data.queries]
    for at in (1, 5, 10):
        cell = found.cells[f"{kind}_r{at}"]
        assert cell.value == pytest.approx(100 * np.mean([rank <= at for rank in wanted]))
        assert cell.low <= cell.value <= cell.high and cell.samples == 97 and not cell.note
    assert 0 < found.cells[f"{kind}_r1"].value < found.cells[f"{kind}_r10"].value < 100
    ties = (data.asked[kind] @ data.true[kind].T == (data.asked[kind] @ data.true[kind].T).max(1)[:, None]).sum(1)
    assert (ties > 1).sum() > 20


def test_the_database_begins_with_what_the_queries_mean_and_has_all_other_images():
    queries = [Query("c#0", "c", "", 0, 0), Query("a#0", "a", "", 0, 1), Query("c#1", "c", "", 1, 2)]
    assert database_of(queries, ["d", "c", "b", "a"]) == ["c", "a", "b", "d"]


def test_chunks_give_what_is_given_at_once(data, monkeypatch):
    whole = found_in(data)
    monkeypatch.setattr(tokens, "BATCH_BYTES", 1)
    monkeypatch.setattr(ranks, "BLOCK", 130)
    assert found_in(data).samples == whole.samples
    assert found_in(data).cells == whole.cells


def test_the_unsorted_list_is_emulated_place_by_place(data):
    found = found_in(data, SECTION.model_copy(update={"quirks": ("unsorted_list",)}))
    order = database_of(data.queries, data.images)
    for kind in ("cls", "patches"):
        places = []
        for row, query in zip(sorted_images(data, kind), data.queries, strict=True):
            listed = [*sorted(row[:9], key=order.index), row[9]]
            places.append(1 + listed.index(query.truth) if query.truth in listed else 11)
        assert [sample.values[f"place_{kind}"] for sample in found.samples] == places
        for at in (1, 5, 10):
            assert found.cells[f"{kind}_r{at}"].value == pytest.approx(100 * np.mean([p <= at for p in places]))
        assert "not sorted" in found.cells[f"{kind}_r1"].note and not found.cells[f"{kind}_r10"].note
        assert found.cells[f"{kind}_r10"] == found_in(data).cells[f"{kind}_r10"]
        assert found.cells[f"{kind}_r1"].value < found_in(data).cells[f"{kind}_r1"].value


def test_float16_vectors_are_compared_as_they_were_rounded(data, tmp_path):
    rng = np.random.default_rng(0)
    keys = [f"k{number:03d}" for number in range(300)]
    true = rng.normal(size=(300, 6))
    asked = true + 0.5 * rng.normal(size=true.shape)
    shard(tmp_path / "true", keys, true, true)
    shard(tmp_path / "predicted", keys, asked, asked)
    mine = SimpleNamespace(root=tmp_path, queries=matched(keys, keys))
    rounded = [
        (x.astype(np.float32) / np.linalg.norm(x.astype(np.float32), axis=1)[:, None]).astype(np.float16)
        for x in (asked, true)
    ]
    similar = (rounded[0].astype(np.float64) @ rounded[1].astype(np.float64).T).astype(np.float16)
    own = np.diag(similar)[:, None]
    wanted = 1 + (similar > own).sum(1) + (np.tril(similar == own, -1)).sum(1)
    found = found_in(mine, SECTION.model_copy(update={"quirks": ("float16_vectors",)}))
    assert np.array_equal(found.ranks["cls"], wanted)
    assert not np.array_equal(found_in(mine).ranks["cls"], wanted)


def test_captions_of_one_image_are_drawn_together(tmp_path):
    rng = np.random.default_rng(3)
    keys = [f"k{number:02d}" for number in range(20)]
    true, asked = rng.normal(size=(2, 20, WIDTH))
    shard(tmp_path / "true", keys, true, true)
    shard(tmp_path / "predicted", keys, asked, asked)
    shard(
        tmp_path / "repeated",
        [f"{key}#{n}" for n in range(9) for key in keys],
        np.tile(asked, (9, 1)),
        np.tile(asked, (9, 1)),
    )
    once = SimpleNamespace(root=tmp_path, queries=matched(keys, keys))
    often = SimpleNamespace(
        root=tmp_path, queries=[Query(f"{key}#{n}", key, "", n, 0) for key in keys for n in range(9)]
    )
    cells = found_in(once).cells["cls_r5"], found_in(often, predicted="repeated").cells["cls_r5"]
    assert (cells[1].value, cells[1].low, cells[1].high) == pytest.approx((cells[0].value, cells[0].low, cells[0].high))
    assert (cells[0].samples, cells[1].samples) == (20, 180)


def test_queries_without_prediction_or_true_image_are_rows_and_counted(data, tmp_path):
    asked, true = ({kind: rows.astype(float) for kind, rows in each.items()} for each in (data.asked, data.true))
    keys, lost = [each.key for each in data.queries], data.queries[8].truth
    asked["cls"][3], asked["patches"][4] = np.nan, 0
    true["cls"][data.images.index(lost)] = np.inf
    shard(tmp_path / "predicted", keys[:-2], asked["cls"][:-2], asked["patches"][:-2])
    shard(tmp_path / "true", data.images, true["cls"], true["patches"])
    queries = [*data.queries, Query("x", "nowhere", "", 0, 97)]
    found = found_in(SimpleNamespace(root=tmp_path, queries=queries))
    states = {sample.key: (sample.status, sample.reason) for sample in found.samples}
    assert list(states) == [*keys, "x"]
    assert states[keys[-1]] == (Status.MISSING, "its prediction: predicted has no such key")
    assert states[keys[3]][0] is Status.UNSUPPORTED and "not finite" in states[keys[3]][1]
    assert "its mean patch is zero" in states[keys[4]][1]
    assert f"its true image {lost}: 4 of 4 numbers of its cls" in states[keys[8]][1]
    good = [n for n, each in enumerate(data.queries) if n not in (3, 4, 95, 96) and each.truth != lost]
    assert [key for key, (status, _) in states.items() if status is Status.OK] == [keys[n] for n in good]
    order = [key for key in database_of(data.queries, data.images) if key != lost]
    for kind in ("cls", "patches"):
        places = sorted_images(data, kind, order)
        wanted = np.array([1 + places[n].index(data.queries[n].truth) for n in good])
        assert found.ranks[kind].tolist() == wanted.tolist()
        cell = found.cells[f"{kind}_r5"]
        assert (cell.value, cell.samples) == (pytest.approx(100 * np.mean(wanted <= 5)), len(good))
        assert f"of {len(good)} of 98 queries" in cell.note
        assert f"would make it {100 * np.sum(wanted <= 5) / 98:.2f}" in cell.note


def test_a_model_of_which_nothing_can_be_measured_has_cells_that_say_so(data):
    found = found_in(data, queries=[Query("none", "i00", "", 0, 0)])
    assert [sample.status for sample in found.samples] == [Status.MISSING]
    assert all(cell.value is None and "none of the 1 queries" in cell.note for cell in found.cells.values())


def test_tokens_that_cannot_be_compared_are_refused(data, tmp_path):
    shard(tmp_path, ["i00"], None, np.ones((1, 7)))
    refused = pytest.raises(ValueError, match="predicted patches have 7 channels, true ones 4")
    with open_tokens(tmp_path) as wide, open_tokens(data.root / "true") as true, refused:
        kinds_of(wide, true)


def test_a_table_of_queries_or_equal_keys_say_what_is_meant(tmp_path):
    true = {"a", "b#1", "c"}
    assert [(each.key, each.truth) for each in matched(["b#1", "a#12", "z", "a"], true)] == [
        ("a", "a"),
        ("a#12", "a"),
        ("b#1", "b#1"),
        ("z", "z"),
    ]
    rows = [{"key": "q1", "truth": "c", "caption": "a <b>"}, {"key": "a#3", "truth": None, "caption": None}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "q.csv").write_text("key,truth,caption\nq1,c,a <b>\na#3,,\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    wanted = [Query("q1", "c", "a <b>", 0, 0), Query("a#3", "a", "", 0, 1)]
    assert all(read_queries(tmp_path / f"q.{kind}", true) == wanted for kind in ("csv", "jsonl", "parquet"))
    (tmp_path / "q.csv").write_text(
        "id,prompt,index,caption_index\nq1,a <b>,0,0\na#3,,0,3\n"
    )  # of pipelines.predictions
    assert read_queries(tmp_path / "q.csv", true) == [Query("q1", "q1", "a <b>", 0, 0), wanted[1]]
    (tmp_path / "q.csv").write_text("key\na\na\n")
    with pytest.raises(ValueError, match="row 2: the key 'a' stood before"):
        read_queries(tmp_path / "q.csv", true)
    (tmp_path / "q.csv").write_text("key,true\na,a\n")
    with pytest.raises(ValueError, match="unknown columns"):
        read_queries(tmp_path / "q.csv", true)


@pytest.mark.parametrize(("failures", "wanted"), [(50, 4), (2, 2), (0, 0), (99, 7), (100, 8)])
def test_the_figure_has_failures_and_successes_so_far_as_there_are_such(failures, wanted):
    places = np.random.default_rng(1).permutation(np.r_[np.full(failures, 5), np.full(100 - failures, 4)])
    found = chosen(places, 0)
    assert found == sorted(set(found)) and len(found) == 8 and found == chosen(places, 0)
    assert np.count_nonzero(places[found] > 4) == wanted
    assert failures in (0, 2, 100) or found != chosen(places, 1)
    assert chosen(places[:3], 0) == [0, 1, 2]
