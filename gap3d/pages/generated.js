byId("head").append(...[
  make("h1", {}, head.title),
  make("p", { class: "line" }, "Patch tokens as colours: their first three principal components, one palette for all."),
  head.untrained ? make("p", { class: "warn" }, head.untrained) : null,
  table(["", ""], Object.entries(head.facts).map(([name, value]) => [words(name), String(value)])),
  head.left ? make("p", { class: "small" }, `${number(head.left)} more sets are not shown.`) : null,
].filter(Boolean));
byId("sets").append(...data.sets.map((set) =>
  make("figure", {},
    make("div", { class: "pictures" },
      set.image ? make("img", { src: set.image, alt: "the picture that is edited", loading: "lazy" }) : null,
      make("img", { class: "tokens", src: set.tokens, alt: `tokens of: ${set.prompt}`, loading: "lazy" })),
    make("figcaption", {}, make("div", {}, set.prompt), make("code", { class: "small" }, set.key)))));
if (data.failed.length) {
  byId("failed").hidden = false;
  byId("failed").append(
    make("h2", {}, `${plural(data.failed.length, "prompt")} without tokens`),
    table(["status", "reason", "key"], data.failed.map((row) => [words(row.status), row.reason, row.key])));
}
