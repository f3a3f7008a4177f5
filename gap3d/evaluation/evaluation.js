/** A number as it is shown: `digits` after the point; of small ones two that are not 0. */
const fixed = (value, column) => (value && Math.abs(value) < 10 ** (1 - column.digits) ? value.toPrecision(2) : value.toFixed(column.digits));
const moment = (text) => text.slice(0, 16).replace("T", " ");
const given = (value) => value !== null && value !== undefined;
const list_of = (items, kind = "ul") => make(kind, {}, items.map((item) => make("li", {}, item)));
const badge = (text, bad, title) => make("span", { class: bad ? "badge bad" : "badge", title }, text);
const folded = (title, ...children) => make("details", {}, make("summary", {}, title), ...children);

function drawHead() {
  byId("head").append(
    make("h1", { dir: "auto" }, head.title),
    make("p", { class: "line" }, `Numbers measured here beside those of ${head.source}, cell by cell · made ${head.made}`));
  if (head.untrained.length) {
    byId("head").append(make("p", { class: "warn", role: "note" }, "Some numbers come from UNTRAINED weights: they prove that the evaluation runs, and say nothing of models. ", ...head.untrained.map((label) => make("div", { class: "small", dir: "auto" }, label))));
  }
  for (const note of head.notes) byId("head").append(make("p", { class: "warn note" }, note));
}

/** The mark of a footnote: a, b, ... z, a1, b1, ...; reasons against a comparison have numbers. */
const letter = (place) => String.fromCharCode(97 + (place % 26)) + (place < 26 ? "" : Math.floor(place / 26));
const placed = (all, text) => (all.includes(text) ? all.indexOf(text) : all.push(text) - 1);

function numberCell(cell, column, notes) {
  if (!given(cell.value)) return make("td", { class: "absent", title: cell.note, "data-column": column.name }, cell.note || "–");
  const ends = given(cell.low) && given(cell.high) ? [cell.low, cell.high] : null;
  const exact = `${cell.value}${ends ? `, interval ${ends[0]} to ${ends[1]}` : ""}, ${plural(cell.samples, "sample")}${cell.note ? `; ${cell.note}` : ""}`;
  return make("td", { class: cell.best ? "best" : null, title: exact, "data-column": column.name },
    make("span", { class: "value" }, fixed(cell.value, column)),
    cell.note ? make("sup", { class: "note" }, ` ${letter(placed(notes, cell.note))}`) : null,
    ends ? make("span", { class: "interval" }, ends.map((end) => fixed(end, column)).join(" to ")) : null);
}

function paperCell(value, column) {
  const at = { "data-column": column.name };
  if (column.absent) return make("td", { class: "absent", title: column.absent, ...at }, "not in the paper");
  return given(value) ? make("td", at, fixed(value, column)) : make("td", { class: "absent", ...at }, "not transcribed here");
}

function differenceCell(cell, column, whys) {
  const at = { "data-column": column.name };
  if (given(cell.difference)) {
    const value = cell.difference;
    const good = { higher: value > 0, lower: value < 0 }[column.better];
    const kind = good === undefined || value === 0 ? null : good ? "better" : "worse";
    return make("td", { class: kind, title: String(value), ...at }, `${value < 0 ? "−" : "+"}${fixed(Math.abs(value), column)}`);
  }
  return make("td", { class: "absent", title: cell.why, ...at }, "not compared", make("sup", {}, ` ${placed(whys, cell.why) + 1}`));
}

function oursHead(result, row, block) {
  const failed = Object.values(result.failed).reduce((sum, count) => sum + count, 0);
  return make("th", { scope: "row" },
    make("div", { class: "row", dir: "auto" }, "measured here", block.collections.length > 1 ? ` on ${result.collection}` : ""),
    [row.name, row.title].includes(result.model) ? null : make("div", { class: "small", dir: "auto" }, result.model),
    result.trained ? null : badge("UNTRAINED", true, result.label),
    result.quirks.map((name) => badge(`as released: ${words(name)}`, false, name)),
    result.checks.filter((check) => !check.passed).map((check) => badge(`check failed: ${words(check.name)}`, true, check.said)),
    make("div", { class: "small" }, [given(result.step) ? `step ${number(result.step)}` : null, plural(result.samples, "sample"), failed ? `${number(failed)} failed` : null].filter(Boolean).join(" · ")),
    row.ours.filter((other) => ["model", "collection", "quirks"].every((name) => String(other[name]) === String(result[name]))).length > 1 ? make("div", { class: "small", dir: "auto" }, [`measured ${moment(result.made)}`, ...Object.entries(result.apart).map(([name, value]) => `${words(name)} ${value}`)].join(" · ")) : null,
    result.trained_on ? make("div", { class: "small" }, result.trained_on) : null,
    result.retrieved ? make("div", { class: "small" }, result.retrieved) : null);
}

function comparison(block) {
  const whys = [];
  const notes = [];
  const heads = block.columns.map((column) => make("th", { scope: "col", title: [column.name, ...column.differs].join("\n") }, column.title, " ", make("span", { title: "better" }, column.arrow), column.unit ? ` (${column.unit})` : ""));
  const bodies = block.rows.map((row) => {
    const lines = [];
    const cells = (work) => block.columns.map(work);
    const first = (name) => make("div", { class: "row", dir: "auto" }, name);
    lines.push(make("tr", {}, make("th", { scope: "row", colspan: 1 }, first(row.title)), make("td", { colspan: block.columns.length, class: "absent" }, row.ours.length || !row.paper ? "" : "not measured here")));
    if (row.paper) lines.push(make("tr", { class: "paper", "data-row": row.name, "data-line": "paper" }, make("th", { scope: "row" }, "paper"), cells((column) => paperCell(row.paper[column.name], column))));
    for (const result of row.ours) {
      lines.push(make("tr", { "data-row": row.name, "data-line": "ours", "data-quirks": result.quirks.join(" ") }, oursHead(result, row, block), cells((column) => numberCell(result.cells[column.name], column, notes))));
      if (block.dataset) lines.push(make("tr", { class: "difference", "data-row": row.name, "data-line": "difference", "data-quirks": result.quirks.join(" ") }, make("th", { scope: "row" }, "here − paper"), cells((column) => differenceCell(result.cells[column.name], column, whys))));
    }
    return make("tbody", {}, lines);
  });
  const shown = make("div", { class: "scroll whole" }, make("table", { class: "numbers" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, ""), heads)), bodies));
  const told = make("dl", { class: "reasons notes" }, notes.map((note, place) => make("div", {}, make("dt", {}, letter(place)), make("dd", { dir: "auto" }, note))));
  return [shown, notes.length ? told : null, whys.length ? make("div", { class: "reasons" }, "Not compared:", list_of(whys, "ol")) : null];
}

function failures(block) {
  const rows = block.rows.flatMap((row) => row.ours).filter((result) => Object.keys(result.failed).length);
  return rows.map((result) => folded(`${result.model}: ${list(result.failed)} of ${plural(result.samples, "sample")}`, list_of(result.reasons.map((reason) => make("span", { dir: "auto" }, reason)))));
}

function checks(block) {
  const all = block.rows.flatMap((row) => row.ours.flatMap((result) => result.checks.map((check) => [result.model, words(check.name), check.passed ? "holds" : "FAILED", make("pre", {}, check.said)])));
  const failed = all.filter((row) => row[2] !== "holds").length;
  return all.length ? folded(`${plural(all.length, "check")}${failed ? `, ${failed} FAILED` : ", all hold"}`, table(["model", "check", "", "numbers"], all)) : null;
}

function provenance(block) {
  const made = block.rows.flatMap((row) => row.ours).map((result) =>
    folded(`${result.model}, ${result.collection}${result.quirks.length ? `, as released: ${result.quirks.join(", ")}` : ""}, ${result.made}`, ...result.provenance.flatMap((part) => [make("h4", {}, part.title), make("pre", {}, part.text)])));
  return made.length ? folded("Everything needed to repeat it: weights, seeds, ids, settings, versions", ...made) : null;
}

/** A picture over the page, one pixel of it on one of the screen; a click, the button or Escape close it. */
function enlarge(picture) {
  const dialog = make("dialog", { class: "full", "aria-label": picture.name, on: { close: () => dialog.remove(), click: () => dialog.close() } },
    make("button", { type: "button", autofocus: true }, "close"), make("img", { src: picture.src, alt: picture.name }));
  document.body.append(dialog);
  dialog.showModal();
}

function figures(all) {
  return make("div", { class: "figures" }, all.map((picture) => make("figure", {},
    picture.src ? make("button", { type: "button", title: "open at full size", on: { click: () => enlarge(picture) } }, make("img", { src: picture.src, alt: [picture.name, picture.of].filter(Boolean).join(" of "), loading: "lazy" })) : make("p", { class: "small" }, "The page has no room for it, or it is no PNG."),
    make("figcaption", { dir: "auto" }, [picture.of, picture.name, picture.place].filter(Boolean).join(" · ")))));
}

function pictures(block) {
  const all = block.rows.flatMap((row) => row.ours.flatMap((result) => result.pictures.map((picture) => ({ ...picture, of: result.model }))));
  return all.length ? figures(all) : null;
}

function drawComparisons() {
  if (!data.comparisons.length) return;
  byId("nav").append(make("a", { href: "#comparisons" }, "Figures 3, 4 and 6"));
  byId("main").append(make("section", { id: "comparisons", class: "part" }, make("h2", {}, "Models side by side (Figures 3, 4 and 6)"),
    ...data.comparisons.map((each) => make("section", { class: "block", "aria-label": each.title },
      make("h3", { dir: "auto" }, each.title), make("p", { class: "explain", dir: "auto" }, each.note),
      each.warning ? make("p", { class: "warn", dir: "auto" }, each.warning) : null, figures(each.pictures)))));
}

function history(block) {
  const { rows, src } = block.history;
  if (!rows.length) return null;
  const lines = rows.map((row) => [row.model, given(row.step) ? number(row.step) : "", row.run, row.trained ? "" : "UNTRAINED", row.quirks.join(", "), number(row.samples), moment(row.made), ...block.columns.map((column) => (given(row.values[column.name]) ? fixed(row.values[column.name], column) : "–"))]);
  const shown = make("details", { open: rows.length > 1, class: "history" }, make("summary", {}, `History: ${plural(rows.length, "result")}`),
    src ? make("img", { class: "curves", src, alt: `history of ${block.title}` }) : null,
    table(["model", "step", "run", "", "as released", "samples", "measured at (UTC)", ...block.columns.map((column) => `${column.title} ${column.arrow}`)], lines));
  return shown;
}

function drawBlock(block, about) {
  const none = !block.rows.some((row) => row.ours.length);
  const where = block.dataset ? (none ? "" : `measured here on ${block.collections.join(", ")}`) : "a collection that the paper did not measure";
  const at = { class: "block", "aria-label": block.title, "data-table": about.number, "data-block": block.dataset || block.title };
  const name = make("h3", { dir: "auto" }, block.title);
  if (none) {
    const transcribed = block.rows.some((row) => Object.values(row.paper).some(given));
    return make("section", at, name,
      make("p", { class: "explain" }, "Nothing of it is measured here yet: ", ...(about.kind === "generation"
        ? [about.sheet ? ["run ", make("code", {}, `python -m pipelines.comparison --runs ${about.sheet} --measure`), " for all of its rows; or "] : [], "run ", make("code", {}, "python -m pipelines.generation_metrics"), " with its collection in evaluation.true, or as --collection."]
        : ["name its collection in evaluation.collections, and run ", make("code", {}, `python -m pipelines.${about.kind}_metrics`), "."])),
      make("details", { open: transcribed }, make("summary", {}, "The paper's rows"), ...comparison(block)));
  }
  return make("section", at, name, make("p", { class: "small" }, where), ...comparison(block), ...failures(block), pictures(block), history(block), checks(block), provenance(block));
}

function drawTable(about) {
  const columns = [...new Map(about.blocks.flatMap((block) => block.columns).map((column) => [column.name, column])).values()];
  const protocol = columns.filter((column) => column.differs.length || column.absent).map((column) => [column.title, make("div", {}, [...column.differs, column.absent].filter(Boolean).map((text) => make("div", {}, text)))]);
  const notes = [...about.notes, ...columns.flatMap((column) => column.notes.map((note) => `${column.title}: ${note}`))];
  const id = `table-${about.number}`;
  byId("nav").append(make("a", { href: `#${id}` }, `Table ${about.number}`));
  byId("main").append(make("section", { id, class: "part" },
    make("h2", {}, `Table ${about.number}: ${about.title}`),
    make("p", { class: "explain" }, about.transcribed < about.cells ? [`${about.transcribed} of ${about.cells} published cells stand here. The others are ${about.elsewhere}. Numbers of your own reading of it are added from a TOML file, which the setting `, make("code", {}, "evaluation.published"), " names."] : "All published cells stand here."),
    notes.length ? list_of(notes) : null,
    ...about.blocks.map((block) => drawBlock(block, about)),
    folded("How the released evaluation differs",
      make("h4", {}, "All columns"), list_of(about.differs),
      make("h4", {}, "By column"), table(["column", "difference"], protocol),
      Object.keys(about.quirks).length ? [make("h4", {}, "Its quirks, which evaluation.quirks turns on by name"), table(["quirk", "the released evaluation"], Object.entries(about.quirks).map(([name, sentence]) => [make("code", {}, name), sentence]))] : null)));
}

drawHead();
data.tables.forEach(drawTable);
drawComparisons();
