/** A count that filters by what it counts. */
function chip(select, name, count) {
  const work = () => {
    byId(select).value = byId(select).value === name ? "" : name;
    apply();
  };
  const kind = select === "flag" ? "" : name === "ok" ? " ok" : name === "not rendered" ? "" : " bad";
  const properties = { type: "button", class: `chip${kind}`, "data-select": select, "data-value": name };
  return make("button", { ...properties, "aria-pressed": "false", on: { click: work } }, words(name), make("b", {}, number(count)));
}

function drawHead() {
  const up = head.up ? [make("a", { href: head.up }, "the collection"), " · "] : [];
  byId("head").append(
    make("h1", {}, head.title),
    make("p", { class: "line" }, ...up, plural(head.objects, "object"), ` · ${head.summary} · made ${head.made}`, ...(head.dataset ? [" · ", make("a", { href: head.dataset }, "the dataset's tokens")] : [])),
  );
  const warn = (text, kind) => byId("head").append(make("p", { class: `warn ${kind || ""}`, role: "note" }, text));
  if (head.untrained) warn(head.untrained);
  if (head.unsandboxed) warn(`${plural(head.unsandboxed, "object")} opened without the kernel's confinement (sandboxed = false).`);
  for (const note of head.notes) warn(note, "note");
  const groups = Object.entries({ status: head.statuses, flag: head.flags }).map(([select, counts]) =>
    make("div", { class: "chips", role: "group", "aria-label": `By ${select}` }, Object.entries(counts).map(([name, count]) => chip(select, name, count))),
  );
  byId("head").append(make("div", { class: "groups" }, groups));
  const stages = Object.entries(head.stages).map(([name, counts]) => [name, list(counts) || "no rows"]);
  const settings = head.settings.map(({ stage, digest, summary, rows }) => [stage, make("code", {}, digest), summary, number(rows)]);
  byId("head").append(
    make("details", { class: "tables" }, make("summary", {}, "Stages and settings"), table(["stage", "rows"], stages), table(["stage", "settings digest", "settings", "rows"], settings)),
  );
  if (head.shards.length) {
    const rows = head.shards.map((shard) => [make("a", { href: shard.file }, `shard ${shard.key}`), number(shard.objects), list(shard.statuses), list(shard.flags)]);
    byId("head").append(make("details", { class: "tables", open: rows.length <= 8 }, make("summary", {}, plural(rows.length, "shard")), table(["report", "objects", "statuses", "flags"], rows)));
  }
}

function drawFailures() {
  const section = byId("failures");
  section.hidden = !data.failures.length;
  section.append(make("h2", {}, "Failures"));
  for (const group of data.failures) {
    const summary = make("summary", {}, `${words(group.status)} · ${number(group.count)}`);
    const box = make("details", { class: "group", id: `failure-${group.status}` }, summary);
    for (const reason of group.reasons) {
      const rows = reason.rows.map((row) => make("li", {}, finder(row), lastWords(row.tail)));
      const left = reason.count - reason.rows.length;
      if (left > 0) rows.push(make("li", { class: "small" }, `and ${number(left)} more`));
      box.append(
        make("div", { class: "reason" }, make("p", { class: "words", dir: "auto" }, reason.reason || "no reason was given"), make("div", { class: "small" }, `${reason.stage} · ${plural(reason.count, "row")}`), make("ul", {}, rows)),
      );
    }
    if (group.left > 0) box.append(make("p", { class: "small" }, `and ${plural(group.left, "other reason")}`));
    section.append(box);
  }
}

/** The object of a failure: leads to its card. */
function finder(row) {
  const find = () => {
    for (const name of ["status", "flag", "split"]) byId(name).value = "";
    byId("text").value = row.id;
    apply();
    byId("grid").scrollIntoView();
    byId("grid").focus({ preventScroll: true });
  };
  return make("button", { type: "button", on: { click: find } }, row.name, " ", make("span", { class: "small" }, row.key));
}

function lastWords(tail) {
  return tail ? make("details", {}, make("summary", { class: "small" }, "Blender's last words"), make("pre", { dir: "auto" }, tail)) : null;
}

function drawShots(object) {
  if (!object.shots.length) return empty(object);
  const pictures = object.shots.length * (object.shots.some((shot) => shot.depth) ? 2 : 1);
  const columns = pictures <= 2 ? pictures : pictures <= 4 ? 2 : 4;
  const box = make("div", { class: columns === 4 ? "shots small-ones" : "shots" });
  box.style.setProperty("--columns", columns);
  for (const shot of object.shots) {
    const view = shot.key.split("/").pop();
    const place = `yaw ${shot.yaw}°, pitch ${shot.pitch}°`;
    const about = `${object.name}, view ${view}, ${place}`;
    if (shot.fault) box.append(make("div", { class: "empty" }, shot.fault));
    else box.append(figure(shot.src, about, pictures === 1 ? place : `${shot.yaw}° / ${shot.pitch}°`));
    if (shot.depth) box.append(figure(shot.depth, `depth of ${about}`, "depth"));
  }
  return box;
}

function figure(source, alt, caption) {
  const image = make("img", { src: source, alt, title: alt, loading: "lazy", decoding: "async" });
  return make("figure", {}, image, make("figcaption", { "aria-hidden": "true" }, caption));
}

function empty(object) {
  if (object.status === "ok") return make("div", { class: "empty waiting" }, "picture left out: the page is full");
  if (object.status === "not rendered") return make("div", { class: "empty waiting" }, "not rendered");
  return make("div", { class: "empty" }, words(object.status), whyLink(object));
}

/** To the reason, which stands once, among the failures. */
function whyLink(object) {
  const target = `failure-${object.status}`;
  return make("a", { href: `#${target}`, on: { click: () => (byId(target).open = true) } }, "why?");
}

function drawBars(object) {
  if (!object.scores.length) return null;
  const highest = Math.max(...object.scores, 1e-9);
  const many = object.scores.length > 6;
  const said = object.scores.map((score, index) => `${object.labels[index]} ${percent(score)}${index === object.chosen ? " (chosen)" : ""}`);
  const bars = object.scores.map((score, index) => {
    const chosen = index === object.chosen;
    const fill = make("div", { class: "fill" });
    fill.style.height = `${((many ? 96 : 50) * score) / highest}%`;
    const texts = many ? [] : [make("span", {}, percent(score, 0)), fill, make("span", {}, `${chosen ? "▸" : ""}${object.labels[index]}`)];
    return make("div", { class: chosen ? "bar chosen" : "bar", title: said[index] }, many ? fill : texts);
  });
  const box = make("div", { class: many ? "bars many" : "bars", role: "img", "aria-label": `visible share of the surface: ${said.join(", ")}` }, bars);
  const label = many && object.chosen >= 0 ? make("div", { class: "small" }, `▸ ${object.labels[object.chosen]} sees ${percent(object.scores[object.chosen])}`) : null;
  return make("div", {}, box, label);
}

function drawFacts(object) {
  const rows = [
    ["id", make("code", {}, object.id)],
    ["captions", object.captions.length > 1 ? object.captions.join(" · ") : undefined],
    ["licence", object.licence || "not stated"],
    ["split", object.split],
    ["rank", object.rank],
    ["type", object.type],
    ["shard", object.shard],
    ["protocol", object.protocol && words(object.protocol)],
    ["images", `${number(object.images)}, ${number(object.shots.length)} shown`],
    ["coverage", percent(object.coverage)],
    ["triangles", object.triangles === undefined ? undefined : `${number(object.triangles)} of ${number(object.vertices)} vertices`],
    ["objects", object.objects],
    ["animated", object.animated === undefined ? undefined : object.animated ? "yes, seen at the first frame" : "no"],
    ["seconds", `${number(object.seconds, 2)}${object.attempts > 1 ? `, ${object.attempts} attempts` : ""}`],
    ["device", object.devices.join(", ")],
    ["sandboxed", object.sandboxed === undefined ? "not known" : String(object.sandboxed)],
    ["repeat", make("code", {}, `${head.why} ${object.id}`)],
  ];
  const shown = rows.filter(([, value]) => value !== undefined && value !== "");
  const terms = shown.flatMap(([name, value]) => [make("dt", {}, name), make("dd", { dir: "auto" }, typeof value === "number" ? String(value) : value)]);
  const gist = [object.triangles === undefined ? null : plural(object.triangles, "triangle"), `${number(object.seconds, 1)} s`, object.split];
  return make("details", { class: "facts" }, make("summary", {}, gist.filter(Boolean).join(" · ")), make("dl", {}, terms));
}

function drawCard(object) {
  const cut = object.name.lastIndexOf("/") + 1;
  const badges = object.flags.map((flag) => make("span", { class: "badge" }, words(flag)));
  if (object.status !== "ok" && object.shots.length) badges.unshift(make("span", { class: "badge" }, words(object.status), " ", whyLink(object)));
  if (object.pinned) badges.push(make("span", { class: "badge plain" }, "yaw pinned"));
  if (object.animated) badges.push(make("span", { class: "badge plain" }, "animated"));
  const missing = object.missing.slice(0, 5).join(", ") + (object.missing.length > 5 ? ` and ${object.missing.length - 5} more` : "");
  const failed = object.status !== "ok" && object.status !== "not rendered";
  return make(
    "article",
    { class: failed ? "card failed" : "card", "data-id": object.id },
    object.sandboxed === false ? make("div", { class: "loud" }, "sandboxed = false") : null,
    drawShots(object),
    make(
      "div",
      { class: "body" },
      make("h3", { dir: "auto" }, make("span", { class: "folder" }, object.name.slice(0, cut)), object.name.slice(cut)),
      object.captions.length ? make("p", { class: "caption", dir: "auto", title: object.captions[0] }, object.captions[0]) : null,
      badges.length ? make("div", { class: "badges" }, badges) : null,
      object.missing.length ? make("p", { class: "missing", title: object.missing.join("\n") }, `missing: ${missing}`) : null,
      drawBars(object),
      drawFacts(object),
    ),
  );
}

const SORTS = {
  name: ["name", (object) => object.name.toLowerCase(), 1],
  coverage: ["coverage", (object) => object.coverage, -1],
  best: ["best score", (object) => (object.scores.length ? Math.max(...object.scores) : undefined), -1],
  spread: ["score spread", (object) => (object.scores.length ? Math.max(...object.scores) - Math.min(...object.scores) : undefined), -1],
  triangles: ["triangles", (object) => object.triangles, -1],
  seconds: ["seconds", (object) => object.seconds, -1],
};
const BACKDROPS = { grey: "grey", black: "black, as encoded", white: "white", checks: "checks" };
const cards = data.objects.map((object) => ({
  object,
  element: drawCard(object),
  text: [object.name, object.id, object.type, object.licence, ...object.captions, ...object.missing].join("\n").toLowerCase(),
}));
let reversed = false;

function options(name, pairs) {
  byId(name).append(...pairs.map(([value, label]) => make("option", { value }, label)));
}

const counted = (counts) => [["", "all"], ...Object.entries(counts).map(([name, count]) => [name, `${words(name)} (${number(count)})`])];

/** Show what the controls ask for, in their order; what has no value comes last. */
function apply() {
  const wanted = byId("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const { value: status } = byId("status"), { value: flag } = byId("flag"), { value: split } = byId("split");
  const [, key, direction] = SORTS[byId("sort").value];
  const sign = reversed ? -direction : direction;
  let seen = 0;
  for (const card of cards) {
    const object = card.object;
    const shown = (!status || object.status === status) && (!flag || object.flags.includes(flag)) && (!split || object.split === split) && wanted.every((word) => card.text.includes(word));
    card.element.hidden = !shown;
    seen += shown;
    card.key = key(object);
  }
  cards.sort((a, b) => {
    if ((a.key === undefined) !== (b.key === undefined)) return a.key === undefined ? 1 : -1;
    const order = a.key === b.key || a.key === undefined ? 0 : (a.key < b.key ? -1 : 1) * sign;
    return order || (a.object.name < b.object.name ? -1 : a.object.name > b.object.name ? 1 : a.object.id < b.object.id ? -1 : 1);
  });
  byId("grid").append(...cards.map((card) => card.element));
  byId("nothing").hidden = seen > 0;
  byId("count").textContent = `${number(seen)} of ${plural(cards.length, "object")}`;
  byId("order").textContent = sign > 0 ? "↑ rising" : "↓ falling";
  byId("order").setAttribute("aria-pressed", String(reversed));
  for (const button of document.querySelectorAll(".chip[data-select]")) {
    const on = byId(button.dataset.select).value === button.dataset.value;
    button.setAttribute("aria-pressed", String(on));
  }
}

drawHead();
drawFailures();
byId("grid").append(make("p", { class: "none", id: "nothing", hidden: true }, "Nothing matches."));
const splits = {};
for (const { split } of data.objects) if (split) splits[split] = (splits[split] || 0) + 1;
options("status", counted(head.statuses));
options("flag", counted(head.flags));
options("split", counted(splits));
options("sort", Object.entries(SORTS).map(([value, [label]]) => [value, label]));
options("backdrop", Object.entries(BACKDROPS));
byId("backdrop").addEventListener("change", () => (byId("grid").dataset.backdrop = byId("backdrop").value));
byId("text").addEventListener("input", apply);
for (const name of ["status", "flag", "split"]) byId(name).addEventListener("change", apply);
byId("sort").addEventListener("change", () => {
  reversed = false;
  apply();
});
byId("order").addEventListener("click", () => {
  reversed = !reversed;
  apply();
});
byId("controls").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    byId("text").focus();
  }
});
apply();
