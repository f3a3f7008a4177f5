"""Which of the listed objects take part, against the same rules in plain Python."""

import csv
import hashlib
import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gap3d import fingerprints
from gap3d.catalog import object_id_of, parse_captions, rank_of
from gap3d.schemas import LEFT_OUT
from gap3d.selection import LISTED, Selection
from gap3d.settings import CatalogSettings

LICENCES = ("MIT License", "CC-BY-NC-4.0", "Apache License 2.0", None)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def annotations(count: int, seed: int = 1) -> list[dict[str, str | None]]:
    """Rows as Objaverse-XL has them; some repeat bytes, some a whole row, some are damaged."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        repository = f"org{draw.randrange(9)}/Repo.{draw.randrange(12)}"
        commit = sha(repository)[:40]
        kind = draw.choice(("obj", "glb", "stl", "blend", "rar"))
        identifier = draw.choice(
            (
                f"https://github.com/{repository}/blob/{commit}/a b/{index}.{kind}",
                f"https://www.thingiverse.com/thing:{draw.randrange(40)}/files?fileId={index}",
                f"https://sketchfab.com/3d-models/{sha(str(index))[:32]}",
            )
        )
        source = identifier.split("/")[2].removeprefix("www.").split(".")[0]
        digest = draw.choice((sha(str(index)), sha(str(index // 3)), sha(str(index)).upper(), "", None))
        rows.append(
            {
                "fileIdentifier": draw.choice((identifier, identifier, identifier, identifier, identifier, None)),
                "source": source,
                "license": draw.choice(LICENCES),
                "fileType": kind,
                "sha256": digest,
                "metadata": "{}",
            }
        )
    return rows + rows[: count // 10]


def trellis(rows, seed: int = 2) -> list[dict[str, str]]:
    """Captions and scores of some of the rows, as TRELLIS-500K has them."""
    draw = random.Random(seed)
    chosen = [row for row in rows if row["sha256"] and draw.random() < 0.6]
    digests = list(dict.fromkeys(row["sha256"].lower() for row in chosen))
    return [
        {
            "sha256": digest,
            "file_identifier": next(r["fileIdentifier"] for r in chosen if r["sha256"].lower() == digest) or "",
            "aesthetic_score": str(round(draw.uniform(3, 8), 3)),
            "captions": draw.choice(("", json.dumps([f"a thing, {digest[:4]}", "long and red, with a comma"]), "[]")),
        }
        for digest in digests
    ]


def read_left_out(path):
    return pq.read_table(path, schema=LEFT_OUT, partitioning=None)


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def select(tmp_path, tables, settings, described_by=()):
    """(admitted rows, rows left out, funnel)."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    selection = Selection(settings, scratch, described_by)
    try:
        selection.take_files(tables)
        left_files = selection.write_left_out(range(settings.shards))
        found = [
            (number, admitted, pa.concat_tables([LEFT_OUT.empty_table(), *map(read_left_out, left_files[number])]))
            for number, admitted in selection.admitted()
        ]
        digests = selection.left_out()
        assert {n: Counter(left["status"].to_pylist()) for n, _, left in found if len(left)} == {
            number: counts for number, (_, counts) in digests.items()
        }
        funnel = selection.funnel()
    finally:
        selection.close()
    for number, admitted, left in found:
        for row in (*admitted.to_pylist(), *left.to_pylist()):
            group = group_of(row)
            assert fingerprints.shard_keys(settings.shards)[number] == fingerprints.shard_of(group, settings.shards)
    taken = [row for _, admitted, _ in found for row in admitted.to_pylist()]
    left = [row for _, _, table in found for row in table.to_pylist()]
    return taken, left, funnel


def group_of(row) -> str:
    """What is fetched at once."""
    parts = row["identifier"].split("/")
    if row["source"] == "github" and len(parts) > 7:
        return f"github.com/{parts[3]}/{parts[4]}@{parts[6]}"
    return object_id_of(row["source"], row["identifier"])


def expected(rows, told, settings):
    """Status of every row by the rules, one after the other, in plain Python."""
    by_sha = {row["sha256"]: row for row in told}
    kept, statuses, seen = [], Counter(), set()
    for row in rows:
        identifier, digest = row["fileIdentifier"] or "", (row["sha256"] or "").lower()
        key = object_id_of(row["source"], identifier)
        info = by_sha.get(digest, {})
        captions = parse_captions(info.get("captions") or None)
        score = float(info["aesthetic_score"]) if info else None
        licence = (row["license"] or "").lower()
        if not identifier:
            statuses["names a file"] += 1
        elif key in seen:
            statuses["listed once"] += 1
        elif row["fileType"] == "rar":
            statuses["known file type"] += 1
        elif not digest:
            statuses["has a sha256"] += 1
        elif settings.licences is not None and licence not in ("mit license", "apache license 2.0"):
            statuses["licence"] += 1
        elif settings.least_score is not None and (score is None or score < settings.least_score):
            statuses["aesthetic score"] += 1
        elif settings.captioned and not captions:
            statuses["captions"] += 1
        else:
            kept.append((info.get("file_identifier") != identifier, rank_of(key, settings.seed), key, digest, captions))
        seen.add(key)
    first = {}
    for entry in sorted(kept):
        first.setdefault(entry[3], entry)
    statuses["first of its bytes"] = len(kept) - len(first)
    taken = sorted(first.values(), key=lambda entry: entry[1])[: settings.count]
    statuses["sample"] = len(first) - len(taken)
    return {entry[2]: entry for entry in taken}, statuses


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"count": 40, "shards": 16},
        {"licences": ("MIT*", "apache license 2.0"), "shards": 1},
        {"least_score": 5.5, "captioned": True, "seed": 7},
    ],
)
def test_every_row_gets_what_the_rules_give_it_one_after_the_other(tmp_path, values, kind):
    rows = annotations(600)
    told = trellis(rows)
    settings = CatalogSettings(**{"shards": 4, **values})
    described = write_csv(tmp_path / "trellis.csv", told)
    if kind == "csv":
        table = write_csv(tmp_path / "rows.csv", rows)
    else:
        table = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows), table)
    taken, left, funnel = select(tmp_path, [table], settings, [described])
    truth, statuses = expected(rows, told, settings)
    assert {row["key"] for row in taken} == set(truth)
    for row in taken:
        assert row["rank"] == rank_of(row["key"], settings.seed)
        assert row["key"] == object_id_of(row["source"], row["identifier"])
        assert parse_captions(row["captions"]) == truth[row["key"]][4]
    assert {step["step"]: step["left_out"] for step in funnel if step["left_out"]} == dict(+statuses)
    assert funnel[0]["rows"] == len(rows) and funnel[-1]["rows"] == len(taken)
    keys = [row["key"] for row in (*taken, *left)]
    assert len(keys) == len(set(keys)) == len(rows), "one row for each that is listed"
    assert all(row["status"] and row["reason"] for row in left)
    assert {row["duplicate_of"] for row in left if row["duplicate_of"]} <= {row["key"] for row in (*taken, *left)}


def test_the_same_rows_in_another_order_and_in_more_files_are_the_same_selection(tmp_path):
    rows = annotations(300)
    settings = CatalogSettings(shards=4, count=50)
    results = []
    for turn, order in enumerate((rows, list(reversed(rows)))):
        place = tmp_path / str(turn)
        place.mkdir()
        half = len(order) // (turn + 1)
        tables = [write_csv(place / f"{i}.csv", part) for i, part in enumerate((order[:half], order[half:])) if part]
        taken, left, funnel = select(place, tables, settings)
        results.append((taken, sorted(left, key=lambda row: row["key"]), funnel))
    assert results[0] == results[1]


def test_a_new_object_changes_the_place_of_no_other(tmp_path):
    rows = annotations(200, seed=3)
    added = {
        **rows[0],
        "fileIdentifier": "https://sketchfab.com/3d-models/new",
        "source": "sketchfab",
        "sha256": sha("n"),
    }
    settings = CatalogSettings(shards=4)
    before, _, _ = select(tmp_path, [write_csv(tmp_path / "a.csv", rows)], settings)
    (tmp_path / "more").mkdir()
    after, _, _ = select(
        tmp_path / "more", [write_csv(tmp_path / "b.csv", [*rows, {**added, "fileType": "glb"}])], settings
    )
    assert {row["key"]: row["rank"] for row in before}.items() <= {row["key"]: row["rank"] for row in after}.items()
    assert len(after) == len(before) + 1


def test_bytes_of_a_held_out_table_never_take_part(tmp_path):
    rows = annotations(200)
    toys = [{"sha256": row["sha256"].upper()} for row in rows[:60] if row["sha256"]]
    held = write_csv(tmp_path / "Toys4k.csv", toys)
    table = write_csv(tmp_path / "rows.csv", rows)
    taken, left, _ = select(tmp_path, [table], CatalogSettings(shards=4, held_out=(held,)))
    hidden = {toy["sha256"].lower() for toy in toys}
    assert not hidden & {row["sha256"] for row in taken}
    assert any(row["reason"] == "left out by catalog.held_out" for row in left)


def test_a_deny_list_names_objects_by_id_identifier_or_bytes_and_licences_by_pattern(tmp_path):
    rows = [
        row for row in annotations(200)[:200] if row["fileIdentifier"] and row["sha256"] and row["fileType"] != "rar"
    ]
    one, two, three = rows[:3]
    lines = [
        {"object": object_id_of(one["source"], one["fileIdentifier"]), "licence": "", "reason": "asked by its author"},
        {"object": two["fileIdentifier"], "licence": "", "reason": ""},
        {"object": three["sha256"].lower(), "licence": "", "reason": "trademark"},
        {"object": "", "licence": "cc-by-nc*", "reason": "not for sale"},
    ]
    denied = write_csv(tmp_path / "denied.csv", lines)
    taken, left, _ = select(tmp_path, [write_csv(tmp_path / "r.csv", rows)], CatalogSettings(shards=4, denied=denied))
    reasons = {row["identifier"]: row["reason"] for row in left}
    assert reasons[one["fileIdentifier"]] == "denied: asked by its author"
    assert reasons[two["fileIdentifier"]] == "denied: on the deny-list"
    assert reasons[three["fileIdentifier"]] == "denied: trademark"
    assert not [row for row in taken if row["licence"] == "CC-BY-NC-4.0"]


@pytest.mark.parametrize("word", ["id", "identifier", "sha256"])
def test_the_bytes_of_a_denied_object_do_not_come_back_by_a_copy(tmp_path, word):
    """Forks hold the same files: with the first of them denied, another would take its place."""
    names = [f"https://github.com/{owner}/r/blob/{'c' * 40}/a.stl" for owner in ("author", "fork", "other")]
    rows = [
        {"fileIdentifier": name, "source": "github", "license": "MIT", "fileType": "stl", "sha256": sha(text)}
        for name, text in zip(names, ("a", "a", "b"), strict=True)
    ]
    words = {"id": object_id_of("github", names[0]), "identifier": names[0], "sha256": sha("a").upper()}
    denied = write_csv(tmp_path / "denied.csv", [{"object": words[word], "licence": "", "reason": "trademark"}])
    taken, left, _ = select(tmp_path, [write_csv(tmp_path / "r.csv", rows)], CatalogSettings(shards=4, denied=denied))
    assert [row["identifier"] for row in taken] == [names[2]]
    reasons = {row["identifier"]: row["reason"] for row in left}
    assert reasons[names[0]] == "denied: trademark"
    assert reasons[names[1]].startswith("denied: ")
    assert reasons[names[1]].endswith("trademark")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{"object": "", "licence": "", "reason": "x"}], "line 2: name either an object or a licence"),
        ([{"object": "a", "license": "b"}], "unknown columns"),
        ([{"licence": "a"}], "it needs one named object"),
    ],
)
def test_a_deny_list_that_denies_nothing_is_refused(tmp_path, lines, words):
    denied = write_csv(tmp_path / "denied.csv", lines)
    with pytest.raises(ValueError, match=words):
        select(tmp_path, [write_csv(tmp_path / "r.csv", annotations(5))], CatalogSettings(shards=4, denied=denied))


@pytest.mark.parametrize(
    ("text", "words"), [(None, r"catalog\.denied names .*, which is no file"), ("object\na,b\n", "more cells than")]
)
def test_a_deny_list_that_is_not_there_or_no_table_is_a_sentence(tmp_path, text, words):
    if text:
        (tmp_path / "denied.csv").write_text(text)
    settings = CatalogSettings(shards=4, denied=tmp_path / "denied.csv")
    with pytest.raises(ValueError, match=words):
        select(tmp_path, [write_csv(tmp_path / "r.csv", annotations(5))], settings)


def test_a_file_that_is_no_table_of_objects_is_refused_by_name(tmp_path):
    wrong = write_csv(tmp_path / "wrong.csv", [{"name": "a"}])
    with pytest.raises(ValueError, match=r"wrong\.csv has no column fileIdentifier or file_identifier"):
        select(tmp_path, [wrong], CatalogSettings())


def test_equal_files_of_a_folder_are_two_objects(tmp_path):
    row = {"source": "folder", "sha256": sha("a"), "licence": "", "file_type": "obj", "bytes": 3}
    table = pa.Table.from_pylist([{**row, "identifier": name} for name in ("a.obj", "b.obj")])
    for name in LISTED:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(2, pa.string()))
    selection = Selection(CatalogSettings(shards=2), tmp_path)
    selection.take_table(table)
    assert sum(len(taken) for _, taken in selection.admitted()) == 2
    selection.close()


@pytest.mark.parametrize(
    "damage",
    [
        b'fileIdentifier,sha256\n"never closed,aa\n',
        b"fileIdentifier,sha256\na,b,c,d\n",
        b"fileIdentifier,sha256\nna\xefve.obj,aa\n",
        b"\x00\x01\x02",
        b"",
    ],
)
def test_a_damaged_table_is_a_sentence(tmp_path, damage):
    table = tmp_path / "rows.csv"
    table.write_bytes(damage)
    with pytest.raises(ValueError, match=r"can't be read|has no column"):
        select(tmp_path, [table], CatalogSettings(shards=2))


def test_a_cut_off_parquet_file_is_a_sentence(tmp_path):
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(annotations(50)), table)
    table.write_bytes(table.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"rows\.parquet can't be read"):
        select(tmp_path, [table], CatalogSettings(shards=2))


def test_cells_may_hold_quotes_commas_and_lines(tmp_path):
    row = {"fileIdentifier": 'https://sketchfab.com/3d-models/a,"b"\nc', "sha256": sha("a"), "fileType": "glb"}
    table = write_csv(tmp_path / "rows.csv", [row])
    told = [{"sha256": sha("a"), "captions": json.dumps(['a, "b"', "two\nlines"])}]
    taken, _, _ = select(tmp_path, [table], CatalogSettings(shards=1), [write_csv(tmp_path / "told.csv", told)])
    assert taken[0]["identifier"] == row["fileIdentifier"] and taken[0]["source"] == "sketchfab"
    assert sorted(parse_captions(taken[0]["captions"])) == sorted(json.loads(told[0]["captions"]))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_score_that_is_no_number_is_absent_and_costs_nothing_else(tmp_path, kind):
    scores = {"a": "7.5", "b": "nan", "c": "inf", "d": "-inf", "e": "", "f": "very nice", "g": "4"}
    if kind == "parquet":
        scores |= {"e": "nan", "f": "nan"}
    listed = [
        {"fileIdentifier": f"https://e.org/{name}.glb", "sha256": sha(name), "bytes": size}
        for name, size in zip(scores, ("1", "", "much", "9", "1e30", "2.0", "3"), strict=True)
    ]
    told = [{"sha256": sha(name), "aesthetic_score": score} for name, score in scores.items()]
    if kind == "csv":
        described = write_csv(tmp_path / "told.csv", told)
    else:
        described = tmp_path / "told.parquet"
        columns = {"sha256": [row["sha256"] for row in told], "aesthetic_score": list(map(float, scores.values()))}
        pq.write_table(pa.table(columns), described)
    settings = CatalogSettings(shards=4, least_score=5.0)
    taken, left, _ = select(tmp_path, [write_csv(tmp_path / "r.csv", listed)], settings, [described])
    assert [(row["identifier"], row["score"]) for row in taken] == [("https://e.org/a.glb", 7.5)]
    assert len(left) == len(scores) - 1


def test_captions_may_be_a_list_of_texts_in_parquet(tmp_path):
    captions = [["it's red, and big", "cube"], [], None]
    names = [f"https://e.org/{index}.glb" for index in range(3)]
    table = {"fileIdentifier": names, "sha256": list(map(sha, names)), "captions": captions}
    pq.write_table(pa.table(table), tmp_path / "r.parquet")
    taken, left, _ = select(tmp_path, [tmp_path / "r.parquet"], CatalogSettings(shards=4, captioned=True))
    assert [parse_captions(row["captions"]) for row in taken] == [captions[0]]
    assert {row["identifier"] for row in left} == set(names[1:])
