"use strict";
// Everything from outside goes through textContent or attributes that hold text; nothing is parsed as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const head = data.head;
const byId = (name) => document.getElementById(name);

/** An element: properties, then children; strings become text. */
function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, work] of Object.entries(value)) element.addEventListener(event, work);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const words = (name) => name.replaceAll("_", " ");
const number = (value, digits) =>
  value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits || 0 });
const percent = (value, digits = 1) => (value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);
const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const list = (counts) => Object.entries(counts).map(([name, count]) => `${number(count)} ${words(name)}`).join(", ");

function table(names, rows) {
  const cells = (kind, row) => make("tr", {}, row.map((cell) => make(kind, kind === "th" ? { scope: "col" } : {}, cell)));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, cells("th", names)), make("tbody", {}, rows.map((row) => cells("td", row)))));
}
