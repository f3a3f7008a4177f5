/** Charts as inline SVG: histograms, several over one axis, and channels as dots. */
const SVG = "http://www.w3.org/2000/svg";
const WIDE = 300, HIGH = 130, LEFT = 8, FOOT = 18, HEAD = 8;

/** An element of SVG: attributes, then children; strings become text. */
function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) if (value !== undefined) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A number for people: so many significant digits, no more. */
function short(value, digits = 3) {
  if (value === undefined || value === null) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(Math.max(0, digits - 2)).replace("e+", "e").replace("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

/** About so many round places from low to high. */
function ticks(low, high, about = 4) {
  const raw = (high - low) / about;
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high + step * 1e-9; n += 1) found.push(n * step);
  return found;
}

function frame(label, high, wide = WIDE) {
  return draw("svg", { viewBox: `0 0 ${wide} ${high}`, class: "chart", role: "img", "aria-label": label });
}

function axis(svg, low, high, along, high_, wide = WIDE) {
  const base = high_ - FOOT;
  svg.append(draw("line", { x1: LEFT, x2: wide - LEFT, y1: base, y2: base, class: "axis" }));
  const places = ticks(low, high);
  const finest = places.length > 1 ? places[1] - places[0] : 1;
  for (const each of places) {
    const value = Math.abs(each) < finest * 1e-6 ? 0 : each;
    svg.append(draw("line", { x1: along(each), x2: along(each), y1: base, y2: base + 3, class: "axis" }));
    const anchor = along(each) < 30 ? "start" : along(each) > wide - 30 ? "end" : "middle";
    svg.append(draw("text", { x: along(each), y: base + 14, "text-anchor": anchor, class: "tick" }, short(value)));
  }
}

/** [low, high] of a histogram's bars, less `centre`; of one number, a little around it. */
function rangeOf(histogram, centre = 0) {
  const low = histogram.start - centre, high = low + histogram.width * histogram.counts.length;
  return [low, high];
}

/**
 * Bars of one histogram.
 *
 * centre: what is subtracted from the numbers; curve: a density to draw over them; unit: what is counted; mark: a place.
 */
function bars(histogram, label, { centre = 0, curve, unit = "token", mark } = {}) {
  if (!histogram || !histogram.count) return make("p", { class: "small" }, "nothing to count");
  const [low, high] = rangeOf(histogram, centre);
  const svg = frame(label, HIGH);
  const along = (value) => LEFT + ((value - low) / (high - low)) * (WIDE - 2 * LEFT);
  const counts = histogram.counts;
  const densities = curve ? counts.map((_, index) => curve(histogram.start + (index + 0.5) * histogram.width) * histogram.count * histogram.width) : [];
  const most = Math.max(...counts, ...densities);
  const tall = (count) => ((HIGH - FOOT - HEAD) * count) / most;
  counts.forEach((count, index) => {
    if (!count) return;
    const from = low + index * histogram.width;
    const x = along(from), width = Math.max(0.7, along(from + histogram.width) - x - 0.4);
    const words = `${label}: ${short(from, 5)} to ${short(from + histogram.width, 5)}: ${plural(count, unit)}`;
    svg.append(draw("rect", { x, y: HIGH - FOOT - tall(count), width, height: Math.max(tall(count), 0.8), class: "bin" }, draw("title", {}, words)));
  });
  if (curve) {
    const points = densities.map((density, index) => `${along(low + (index + 0.5) * histogram.width)},${HIGH - FOOT - tall(density)}`);
    svg.append(draw("polyline", { points: points.join(" "), class: "curve" }));
  }
  if (mark !== undefined && mark >= low && mark <= high) svg.append(draw("line", { x1: along(mark), x2: along(mark), y1: HEAD - 4, y2: HIGH - FOOT, class: "mark" }));
  axis(svg, low, high, along, HIGH);
  return svg;
}

/** Several histograms one below the other, over one axis; rows: {name, histogram, at}: at is a single number. */
function ridges(rows, label, low, high) {
  const each = 62, name = 200, wide = 760;
  const svg = frame(label, rows.length * each + FOOT + 10, wide);
  const along = (value) => name + ((value - low) / (high - low)) * (wide - name - LEFT);
  rows.forEach((row, index) => {
    const base = (index + 1) * each;
    svg.append(draw("line", { x1: name, x2: wide - LEFT, y1: base, y2: base, class: "axis" }));
    svg.append(draw("text", { x: 0, y: base - 22, class: "label" }, row.name), draw("text", { x: 0, y: base - 7, class: "tick" }, row.words));
    const histogram = row.histogram;
    if (histogram && histogram.count) {
      const most = Math.max(...histogram.counts);
      histogram.counts.forEach((count, bin) => {
        if (!count) return;
        const from = histogram.start + bin * histogram.width;
        const x = along(from), width = Math.max(0.9, along(from + histogram.width) - x);
        const tall = Math.max(0.8, ((each - 14) * count) / most);
        svg.append(draw("rect", { x, y: base - tall, width, height: tall, class: `bin hue${index}` }, draw("title", {}, `${row.name}: ${short(from)} to ${short(from + histogram.width)}: ${number(count)}`)));
      });
    }
    if (row.at !== undefined && row.at !== null) svg.append(draw("path", { d: `M${along(row.at)} ${base} l-5 -9 h10 z`, class: `bin hue${index}` }, draw("title", {}, short(row.at))), draw("line", { x1: along(row.at), x2: along(row.at), y1: base - each + 16, y2: base, class: "mark" }));
  });
  axis(svg, low, high, along, rows.length * each + FOOT + 4, wide);
  return svg;
}

/** Every channel as a dot: its mean to the right, its deviation upwards; the named ones carry their number. */
function dots(means, deviations, named, label) {
  const svg = frame(label, HIGH);
  const low = Math.min(0, ...means), high = Math.max(0, ...means), most = Math.max(...deviations, 1e-9);
  const margin = (high - low || 1) * 0.06;
  const along = (value) => LEFT + ((value - low + margin) / (high - low + 2 * margin)) * (WIDE - 2 * LEFT);
  const up = (value) => HIGH - FOOT - ((HIGH - FOOT - HEAD - 4) * value) / (most * 1.05);
  if (1 <= most * 1.05) svg.append(draw("line", { x1: LEFT, x2: WIDE - LEFT, y1: up(1), y2: up(1), class: "grid" }, draw("title", {}, "deviation 1")), draw("text", { x: WIDE - LEFT, y: up(1) - 2, "text-anchor": "end", class: "tick" }, "sd 1"));
  svg.append(draw("line", { x1: along(0), x2: along(0), y1: HEAD, y2: HIGH - FOOT, class: "grid" }));
  means.forEach((mean, channel) => {
    const loud = named.includes(channel);
    const words = `channel ${channel}: mean ${short(mean)}, deviation ${short(deviations[channel])}`;
    svg.append(draw("circle", { cx: along(mean), cy: up(deviations[channel]), r: loud ? 3 : 1.6, class: loud ? "dot loud" : "dot" }, draw("title", {}, words)));
    if (loud && named.indexOf(channel) < 4) {
      const right = along(mean) > WIDE - 50;
      svg.append(draw("text", { x: along(mean) + (right ? -5 : 5), y: up(deviations[channel]) + 3, "text-anchor": right ? "end" : "start", class: "tick loud" }, String(channel)));
    }
  });
  axis(svg, low - margin, high + margin, along, HIGH);
  return svg;
}
