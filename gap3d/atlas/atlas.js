const section = (id, title, ...children) => {
  const made = make("section", { id, class: "part" }, make("h2", {}, title), ...children);
  byId("main").append(made);
  byId("nav").append(make("a", { href: `#${id}` }, title));
  return made;
};
const healthy = (...texts) => make("p", { class: "healthy" }, make("b", {}, "Healthy: "), ...texts);
const explain = (...texts) => make("p", { class: "explain" }, ...texts);
const fact = (value, name, note) => make("div", { class: "fact" }, make("b", {}, value), make("span", {}, name), note ? make("small", {}, note) : null);
const KINDS = { cls: "CLS token", registers: "register tokens", patches: "patch tokens" };
const bytes = (value) => {
  if (value === null || value === undefined) return "–";
  const power = Math.min(4, Math.floor(Math.log10(Math.max(value, 1)) / 3));
  return `${short(value / 1000 ** power)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
};

function drawHead() {
  const up = head.up ? [make("a", { href: head.up }, "the collection"), " · "] : [];
  const { counts, layout, looked_at: looked } = data;
  byId("head").append(
    make("h1", { dir: "auto" }, head.title),
    make("p", { class: "line" }, ...up, `${plural(counts.images, "image")} of ${plural(counts.objects, "object")} · encoder: ${data.encoders.map((each) => each.label).join(", ") || "none yet"} · made ${head.made}`),
  );
  if (head.untrained) {
    const words = " These tokens come from no trained encoder: what is below proves the pipeline and says nothing of images. Colours, neighbours and outliers are those of a random network.";
    byId("head").append(make("p", { class: "warn loud-label", role: "note" }, make("strong", {}, head.untrained), words));
  }
  const bad = data.findings.filter((finding) => !finding.good && finding.grave);
  const odd = data.findings.filter((finding) => !finding.good && !finding.grave);
  if (data.findings.length) {
    const verdict = bad.length ? `Unsound: ${bad.map((finding) => finding.about).join("; ")}` : `Tokens are sound: ${data.findings.length - odd.length} of ${data.findings.length} findings as they should be${odd.length ? `; worth a look: ${odd.map((finding) => finding.about).join("; ")}` : ""}`;
    const rows = data.findings.map((finding) => [make("span", { class: finding.good ? "yes" : finding.grave ? "no" : "odd" }, finding.good ? "✓" : finding.grave ? "✗" : "!"), finding.about, finding.words]);
    byId("head").append(make("details", { class: `verdict ${bad.length ? "no" : odd.length ? "odd" : "yes"}`, open: bad.length > 0 }, make("summary", {}, verdict), table(["", "what should hold", "what was seen"], rows)));
  }
  const splits = Object.entries(counts.splits).map(([name, count]) => `${number(count)} ${name}`).join(" · ");
  const tokens = layout ? 1 + layout.registers.shape[0] + layout.patches.shape[0] : undefined;
  const target = data.storage.find((each) => each.stage === "targets");
  byId("head").append(
    make(
      "div",
      { class: "factsheet" },
      fact(number(counts.images), "images", splits),
      fact(number(counts.objects), "objects", `images of each: ${short(counts.images / Math.max(counts.objects, 1))}`),
      fact(number(counts.captions), "captions", `${number(counts.without_caption)} images without · ${short(counts.words_of_a_caption)} words each`),
      layout ? fact(`${number(tokens)} × ${number(layout.cls.shape[0])}`, "tokens × channels", `CLS, ${layout.registers.shape[0]} registers, ${layout.grid.join(" × ")} patches`) : null,
      target ? fact(bytes(target.bytes), "targets", `${bytes(target.row_bytes)} an image · ${data.encoders.map((each) => each.store_dtype).join(", ")}`) : null,
      fact(number(data.duplicates.count), "near duplicates", `cosine ≥ ${data.bounds.duplicate} · ${number(data.duplicates.across)} across the split`),
    ),
  );
  const few = looked.measured < looked.rows || looked.compared < looked.rows;
  if (few) byId("head").append(make("p", { class: "warn note" }, `Of ${number(looked.rows)} images, the CLS tokens of ${number(looked.compared)} are compared, all tokens of ${number(looked.measured)} measured, components fitted to ${number(looked.fitted)} and ${number(looked.shown)} shown with their tokens: seeded samples. Counts and rows are of all.`));
}

const NORMAL = (x) => Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);

function chart(title, svg, note) {
  return make("figure", { class: "panel" }, make("figcaption", {}, title), svg, note ? make("p", { class: "small" }, note) : null);
}

const spread = (histogram, digits = 4) => (histogram.count ? `1 % ${short(histogram.quantiles["0.01"], digits)} · median ${short(histogram.quantiles["0.5"], digits)} · 99 % ${short(histogram.quantiles["0.99"], digits)}` : "");

function drawTokens() {
  const kinds = data.kinds.filter((kind) => kind.width);
  if (!kinds.length) return;
  const box = section(
    "tokens",
    "Tokens",
    explain("Targets are layer-normed without affine: every token has mean 0, variance 1 and norm √C by construction. Norms and variances therefore prove that storing and reading lost nothing, and no more; how values spread over channels is the encoder's own."),
    healthy("variance within rounding of 1, whatever the image; a few channels far from the crowd are usual in large transformers, and are the same ones in every run; values near the bell curve apart from those. A wide variance, a spike at 0, or all channels in one point is broken."),
  );
  for (const kind of kinds) {
    const root = Math.sqrt(kind.width);
    const loud = kind.outliers.length ? `${kind.outliers.length > 1 ? "channels" : "channel"} ${kind.outliers.slice(0, 6).join(", ")}${kind.outliers.length > 6 ? " …" : ""} above 5 × the median RMS: ${percent(kind.outlier_share)} of the energy` : "no channel above 5 × the median RMS";
    const facts = [`${number(kind.tokens)} tokens of ${plural(kind.images, "image")}`, kind.broken ? `${number(kind.broken)} NOT FINITE` : "all finite", `predicting the mean has MSE ${short(kind.mean_error)}`];
    box.append(
      make("h3", { class: "kind" }, KINDS[kind.name] || kind.name, make("span", { class: "small" }, facts.join(" · "))),
      make(
        "div",
        { class: "panels" },
        chart("variance − 1, by token", bars(kind.variances, "variance less 1", { centre: 1, mark: 0 }), `${short(kind.variances.least, 6)} to ${short(kind.variances.most, 6)}`),
        chart(`norm − √C (√C = ${short(root, 5)}), by token`, bars(kind.norms, "norm less the root of the channels", { centre: root, mark: 0 }), spread(kind.norms, 6)),
        chart("values, with the normal density", bars(kind.values, "value", { curve: NORMAL, unit: "number" }), `of up to 16 tokens an image · ${spread(kind.values, 3)}`),
        chart("channels: mean → , deviation ↑", dots(kind.channels.means, kind.channels.deviations, kind.outliers.length ? kind.outliers : kind.loudest.slice(0, 3).map((each) => each.channel), "channels by mean and deviation"), loud),
      ),
    );
  }
  const rows = kinds.map((kind) => [KINDS[kind.name], kind.loudest.map((each) => `${each.channel} (${short(each.rms)})`).join("  ")]);
  box.append(make("details", {}, make("summary", {}, "Loudest channels, with their RMS"), table(["tokens", "channel (RMS)"], rows)));
}

function drawCosines() {
  const by = Object.fromEntries(data.kinds.map((kind) => [kind.name, kind]));
  const rows = [];
  const row = (name, histogram, words, at) => ((histogram && histogram.count) || at !== undefined) && rows.push({ name, histogram, words: words || (histogram ? `median ${short(histogram.quantiles["0.5"])}` : `${short(at)}`), at });
  if (data.cosines.count) row("CLS of two images", data.cosines);
  if (by.patches) {
    row("adjacent patches", by.patches.adjacent, by.patches.adjacent?.count ? `by image · median ${short(by.patches.adjacent.quantiles["0.5"])}` : "");
    row("patches of one image", by.patches.within, by.patches.within?.count ? `by image · median ${short(by.patches.within.quantiles["0.5"])}` : "");
    if (by.patches.across !== null) row("patches of two images", null, `all pairs · ${short(by.patches.across)}`, by.patches.across);
  }
  if (by.registers?.across !== null && by.registers?.across !== undefined) row("one register, two images", null, `all pairs · ${short(by.registers.across)}`, by.registers.across);
  if (!rows.length) return;
  const lows = rows.map((each) => (each.histogram ? each.histogram.least : each.at));
  const low = Math.min(0, ...lows);
  section(
    "cosines",
    "Similarity",
    explain("Cosine between tokens. The means over pairs are exact over all pairs of the measured images; the histogram of CLS pairs is of 2,000 images at most."),
    healthy("adjacent patches are more alike than patches of one image, those more than patches of two images, and CLS tokens spread widely. All near 1 is a collapsed encoder; adjacent as unlike as any other, scrambled patches."),
    ridges(rows, "cosines between tokens", low, 1),
    make(
      "p",
      { class: "small" },
      [data.pca.cls_effective ? `CLS tokens fill about ${short(data.pca.cls_effective)} dimensions` : null, data.pca.effective ? `patch tokens about ${short(data.pca.effective)}` : null].filter(Boolean).join(", ") + " (participation ratio of the spectrum of the covariance).",
    ),
  );
}

/** A picture of an image by its key, or a place that says there is none. */
function picture(key, about) {
  const source = data.pictures[key];
  if (!source) return make("div", { class: "empty" }, "no picture");
  return make("img", { src: source, alt: about, title: about, loading: "lazy", decoding: "async" });
}

const named = (row) => (row.caption ? make("p", { class: "caption", dir: "auto", title: row.caption }, row.caption) : make("p", { class: "caption small" }, "no caption"));

function drawPca() {
  if (!data.shown.length) return;
  const { shares, object_shares: objectShares } = data.pca;
  const three = (list_) => list_.slice(0, 3).map((share) => percent(share, 0)).join(" + ");
  const objects = data.shown.some((each) => each.object);
  const smooth = make("button", { type: "button", "aria-pressed": "false", id: "smooth" }, "smooth");
  smooth.addEventListener("click", () => {
    const on = byId("pca").classList.toggle("smooth");
    smooth.setAttribute("aria-pressed", String(on));
  });
  const box = section(
    "pca",
    "Patch tokens as colours",
    explain(`The first three principal components of the patch tokens as red, green and blue, fitted once to ${plural(data.looked_at.fitted, "image")}: the same colour means the same in every picture. ${three(shares)} of the variance${objects ? `; at the right the components of the patches that an object covers, ${three(objectShares)} of theirs` : ""}.`),
    healthy("objects stand out from the ground, their parts are smooth patches of colour, and like parts of different objects are coloured alike. Noise of single patches is what a random encoder gives."),
    make("div", { class: "tools" }, smooth, make("span", { id: "touching", class: "small", "aria-live": "polite" }, touchWords())),
  );
  const grid = make("div", { class: "pca-grid" });
  data.shown.forEach((each, index) => {
    const about = each.caption || each.name;
    const canvas = make("canvas", { class: "heat", width: data.layout.grid[1], height: data.layout.grid[0], hidden: true });
    const spot = make("div", { class: "spot", hidden: true });
    const pictures = make(
      "div",
      { class: "triple", "data-index": index },
      make("div", { class: "pane" }, picture(each.key, `${about}, as the encoder saw it`), spot),
      make("div", { class: "pane" }, each.tokens ? make("img", { src: each.tokens, alt: `patch tokens of ${about}`, class: "tokens" }) : make("div", { class: "empty" }, "not finite"), canvas),
      objects ? make("div", { class: "pane dark" }, each.object ? make("img", { src: each.object, alt: `patch tokens of the object in ${about}`, class: "tokens" }) : null) : null,
    );
    grid.append(make("article", { class: "pca-card", "data-key": each.key }, pictures, make("div", { class: "body" }, named(each), make("p", { class: "small name", dir: "auto", title: each.key }, each.name))));
  });
  box.append(grid);
  listen(grid);
}

const touchWords = () => (data.pca.touched ? `Point at a patch: all others are coloured by their cosine to it, in every picture. Click to hold it. (Centred, in the first ${data.pca.touched} components: ${percent(data.pca.shares.reduce((sum, share) => sum + share, 0), 0)} of the variance.)` : "");
const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
const features = new Map();

/** Unit vectors of an image's patches, int8. */
function featuresOf(index) {
  if (!features.has(index)) features.set(index, Int8Array.from(atob(data.shown[index].touch), (letter) => letter.charCodeAt(0)));
  return features.get(index);
}

/** Colour every patch of every picture by its cosine to one of them. */
function touch(index, patch) {
  const width = data.pca.touched, [rows, columns] = data.layout.grid;
  const query = featuresOf(index).subarray(patch * width, (patch + 1) * width);
  document.querySelectorAll(".triple").forEach((triple) => {
    const other = featuresOf(Number(triple.dataset.index));
    const canvas = triple.querySelector("canvas"), spot = triple.querySelector(".spot");
    if (!other.length) return;
    const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
    for (let token = 0; token < rows * columns; token += 1) {
      let cosine = 0;
      for (let each = 0; each < width; each += 1) cosine += query[each] * other[token * width + each];
      const place = Math.min(1, Math.max(0, cosine / 16129)) * (VIRIDIS.length - 1), step = Math.min(Math.floor(place), VIRIDIS.length - 2);
      for (let channel = 0; channel < 3; channel += 1) image.data[4 * token + channel] = VIRIDIS[step][channel] + (place - step) * (VIRIDIS[step + 1][channel] - VIRIDIS[step][channel]);
      image.data[4 * token + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    canvas.hidden = false;
    spot.hidden = Number(triple.dataset.index) !== index;
    spot.style.left = `${(100 * (patch % columns)) / columns}%`;
    spot.style.top = `${(100 * Math.floor(patch / columns)) / rows}%`;
    spot.style.width = `${100 / columns}%`;
    spot.style.height = `${100 / rows}%`;
  });
}

function leave() {
  for (const each of document.querySelectorAll("canvas.heat, .spot")) each.hidden = true;
}

function listen(grid) {
  let held = false;
  const at = (event) => {
    const pane = event.target.closest(".pane");
    if (!pane) return null;
    const index = Number(pane.parentElement.dataset.index), box = pane.getBoundingClientRect();
    if (!data.shown[index].touch) return null;
    const [rows, columns] = data.layout.grid;
    const place = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value * count)));
    const row = place((event.clientY - box.top) / box.height, rows), column = place((event.clientX - box.left) / box.width, columns);
    return [index, row * columns + column];
  };
  const show = (event) => {
    const found = at(event);
    if (found) touch(...found);
    else leave();
  };
  grid.addEventListener("pointermove", (event) => held || show(event));
  grid.addEventListener("pointerleave", () => held || leave());
  grid.addEventListener("click", (event) => {
    held = at(event) !== null && !held;
    show(event);
  });
}

/** A small picture with what stands below it. */
function tile(key, ...below) {
  const row = data.rows[key] || { name: key };
  return make("figure", { class: "tile", title: `${row.caption || row.name}\n${key}${row.split ? ` · ${row.split}` : ""}` }, picture(key, row.caption || row.name), make("figcaption", {}, ...below));
}

function drawNeighbours() {
  if (!data.neighbours.length) return;
  const box = section("neighbours", "Nearest neighbours", explain(`By cosine of CLS, exact, among ${plural(data.looked_at.compared, "image")}; views of the same object are left out.`), healthy("things of one kind, or of one look, stand together."));
  const grid = make("div", { class: "neighbours" });
  for (const each of data.neighbours) {
    const row = data.rows[each.key];
    grid.append(make("article", { class: "query" }, make("div", { class: "strip" }, make("div", { class: "asked" }, tile(each.key, "query")), each.near.map((other) => tile(other.key, other.cosine.toFixed(3)))), named(row)));
  }
  box.append(grid);
}

function drawOutliers() {
  if (!data.outliers.length) return;
  const box = section("outliers", "Outliers", explain(`The images that are least like their ${data.bounds.neighbours} nearest: lowest mean cosine first. Empty, broken or mislit pictures gather here, and the truly strange.`));
  const strip = make("div", { class: "tiles" }, data.outliers.map((each) => tile(each.key, make("b", {}, each.closeness.toFixed(3)), ` ${data.rows[each.key].caption || data.rows[each.key].name}`)));
  box.append(strip, make("div", { class: "panels" }, chart("mean cosine to the nearest, all images", bars(data.closeness, "mean cosine", { unit: "image" }), spread(data.closeness, 3))));
}

function drawDuplicates() {
  const { count, across, bound } = data.duplicates;
  const box = section("duplicates", "Near duplicates");
  if (!count) return box.append(explain(`No two images of different objects have a cosine of CLS of ${bound} or more.`));
  box.append(explain(`${plural(count, "pair")} of images of different objects with a cosine of CLS of ${bound} or more${count > data.pairs.length ? `; the ${data.pairs.length} nearest are shown` : ""}.`));
  if (across) box.append(make("p", { class: "warn" }, `${plural(across, "pair")} on both sides of the split: what is learnt in training is asked for in validation.`));
  if (head.untrained) box.append(make("p", { class: "small" }, "An untrained encoder finds nearly everything alike."));
  const name = (row) => make("div", { class: "named", dir: "auto" }, row.name, make("div", { class: "small" }, row.caption || ""));
  const rows = data.pairs.map((pair) => {
    const [one, other] = pair.keys.map((key) => data.rows[key]);
    const split = one.split === other.split ? one.split || "–" : make("b", { class: "leak" }, `${one.split} / ${other.split}`);
    return [make("span", { class: "thumb" }, picture(one.key, one.name)), make("span", { class: "thumb" }, picture(other.key, other.name)), pair.cosine.toFixed(4), split, name(one), name(other)];
  });
  box.append(table(["one", "other", "cosine", "split", "", ""], rows));
}

function drawRows() {
  const box = section("rows", "Rows", explain("Every input row has one output row at each stage: ok, or a status with a reason. Reasons stand where the row began to fail; later stages pass it on."));
  const rows = data.stages.map((stage) => [stage.stage, number(stage.rows), list(stage.statuses), stage.passed_on ? number(stage.passed_on) : "", stage.complete ? "" : make("b", { class: "leak" }, "incomplete")]);
  box.append(table(["stage", "rows", "by status", "passed on", ""], rows));
  const reasons = data.stages.flatMap((stage) => stage.reasons.map((each) => [stage.stage, words(each.status), number(each.count), make("span", { class: "words", dir: "auto" }, each.reason || "no reason was given")]));
  if (reasons.length) box.append(make("h3", {}, "Reasons"), table(["stage", "status", "rows", "reason"], reasons));
  const { counts } = data;
  box.append(
    make("h3", {}, "Captions, split, licences"),
    make("div", { class: "beside" }, table(["captions of an image", "images"], Object.entries(counts.captions_of_an_image).map(([captions, images]) => [captions, number(images)])),
    table(["split", "images"], Object.entries(counts.splits).map(([split, images]) => [split, number(images)])),
    table(["licence", "images"], Object.entries(counts.licences).map(([licence, images]) => [licence, number(images)]))),
  );
}

function drawStorage() {
  const total = (name) => data.storage.reduce((sum, each) => sum + each[name], 0);
  const most = Math.max(...data.storage.map((each) => each.bytes), 1);
  const share = (value) => {
    const bar = make("div", { class: "share" });
    bar.style.width = `${Math.max(0.5, (100 * value) / most)}%`;
    return make("div", { class: "shares" }, bar);
  };
  const rows = data.storage.map((each) => [each.stage, share(each.bytes), bytes(each.bytes), number(each.parts), number(each.rows), bytes(each.row_bytes), bytes(each.replaced), number(each.shards)]);
  rows.push([make("b", {}, "all"), "", make("b", {}, bytes(total("bytes"))), number(total("parts")), "", "", bytes(total("replaced")), ""]);
  section("storage", "Storage", explain("Live parts of every stage. Replaced parts wait for ", make("code", {}, "python -m pipelines.gc"), "."), table(["stage", "", "bytes", "parts", "rows", "bytes a row", "replaced", "shards"], rows));
}

function plain(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function drawMade() {
  const box = section("made", "Encoder and settings");
  const said = (title, entries) => table([title, ""], entries.map(([name, value]) => [words(name), make("code", {}, plain(value))]));
  const flat = ([name, value]) => (name === "preprocessing" && value && typeof value === "object" ? Object.entries(value).map(([inner, each]) => [`${name}: ${inner}`, each]) : [[name, value]]);
  for (const encoder of data.encoders) box.append(make("div", { class: encoder.trained ? "stamp" : "stamp untrained" }, encoder.trained ? encoder.label : `${encoder.label}: these tokens mean nothing`));
  box.append(make("div", { class: "beside" }, data.encoders.map((encoder) => said("encoder", Object.entries(encoder).flatMap(flat))), data.layout ? said("tokens", Object.entries(data.layout)) : null));
  for (const each of data.settings) box.append(make("details", {}, make("summary", {}, `${each.stage} settings, ${plural(each.rows, "row")} `, make("code", {}, each.digest.slice(0, 12))), make("pre", {}, JSON.stringify(each.settings, null, 1))));
}

drawHead();
for (const part of [drawTokens, drawCosines, drawPca, drawNeighbours, drawOutliers, drawDuplicates, drawRows, drawStorage, drawMade]) part();
