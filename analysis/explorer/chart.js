// The charts of the explorer: elements, scales, axes and numbers as text. They know nothing of studies.

const SVG = "http://www.w3.org/2000/svg";

const finite = (values) => values.filter(Number.isFinite);
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : NaN);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

/** The standard deviation, with n - 1 in the denominator. */
function deviation(values) {
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}

// ---- colours and axes

/** A colour that can be told from the background: dark colours become lighter on a dark page. */
function visible(color, dark) {
  if (!dark) return color;
  const parts = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  const brightness = (0.3 * parts[0] + 0.59 * parts[1] + 0.11 * parts[2]) / 255; // luma: the eye sees green best
  const share = Math.max(0, 0.62 - brightness); // of the way to white; colours brighter than 0.62 stay as they are
  return `rgb(${parts.map((part) => Math.round(part + share * (255 - part))).join(",")})`;
}

const ink = (dark) => (dark ? "#e8e8e6" : "#1c1c1c");
const paper = (dark) => (dark ? "#17181b" : "#ffffff");
const faint = (dark) => (dark ? "#44474c" : "#dddddb");

/** An empty picture, in which texts have the page's font also after it is saved as a file. */
function canvas(width, height) {
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", xmlns: SVG });
  picture.setAttribute("font-family", "system-ui, sans-serif");
  picture.setAttribute("font-size", "12");
  return picture;
}

/**
 * An empty chart with its axes. x and y are scales; `px` and `py` map values to pixels. With a number of `rows`, there is
 * no y axis, and `py` maps the number of a row. Marks go into `inside`, which cuts them off at the edges of the axes.
 */
function chart({ width, height, x, y, xlabel, ylabel, dark, left = 52, rows = null }) {
  const picture = canvas(width, height);
  const box = { left, right: width - 12, top: 24, bottom: height - 38 };
  const px = (value) => box.left + x.share(value) * (box.right - box.left);
  const py = (value) => (rows ? box.top + ((value + 1) / (rows + 0.4)) * (box.bottom - box.top) : box.bottom - y.share(value) * (box.bottom - box.top));
  // Several pictures share one page, so that each needs an identifier of its own.
  const clip = `clip-${Math.random().toString(36).slice(2)}`;
  const defs = svg("clipPath", { id: clip });
  defs.append(svg("rect", { x: box.left - 4, y: box.top - 4, width: box.right - box.left + 8, height: box.bottom - box.top + 8 }));
  picture.append(defs);
  let end = -Infinity; // where the last label of the x axis ends
  for (const tick of x.ticks) {
    const at = px(tick.value);
    picture.append(svg("line", { x1: at, x2: at, y1: box.top, y2: box.bottom, stroke: faint(dark) }));
    const half = 3.4 * tick.text.length; // half the width of the label, at about 7 pixels a digit
    if (at - half < end + 6) continue; // a label that has no room
    end = at + half;
    picture.append(text(tick.text, { x: Math.min(at, width - half - 1), y: box.bottom + 16, anchor: "middle", dark }));
  }
  for (const tick of y ? y.ticks : []) {
    const at = py(tick.value);
    picture.append(svg("line", { x1: box.left, x2: box.right, y1: at, y2: at, stroke: faint(dark) }));
    picture.append(text(tick.text, { x: box.left - 6, y: at + 4, anchor: "end", dark }));
  }
  picture.append(text(xlabel, { x: (box.left + box.right) / 2, y: height - 5, anchor: "middle", dark }));
  if (ylabel) picture.append(text(ylabel, { x: 2, y: 13, anchor: "start", dark }));
  const inside = svg("g", { "clip-path": `url(#${clip})` });
  picture.append(inside);
  return { picture, inside, px, py, box, dark };
}

/** The learner's name at the left edge, above its row; a halo keeps it readable over dots. */
function rowLabel(area, learner, row, color) {
  const label = text(learner.label, { x: area.box.left + 2, y: area.py(row) - 14, anchor: "start", dark: area.dark });
  label.setAttribute("fill", color);
  label.setAttribute("font-weight", "600");
  label.setAttribute("paint-order", "stroke");
  label.setAttribute("stroke", paper(area.dark));
  label.setAttribute("stroke-width", "3");
  area.inside.append(label);
}

/** The positions of the points that pass a test, in runs without a gap: what is not measured stays blank. */
function runs(points, test) {
  const all = [];
  points.forEach((point, i) => {
    if (!test(point)) return;
    if (all.length && all.at(-1).at(-1) === i - 1) all.at(-1).push(i);
    else all.push([i]);
  });
  return all;
}

// ---- scales: `share` maps a value to 0 (start of the axis) up to 1 (its end)

/** A linear or logarithmic scale over values, with a margin of 4 % at both ends; null if none can be shown. */
function scaleOf(values, log) {
  const usable = log ? values.filter((value) => value > 0) : values;
  if (!usable.length) return null;
  let [low, high] = [usable.reduce((a, b) => Math.min(a, b)), usable.reduce((a, b) => Math.max(a, b))];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  if (log) {
    const [a, b] = [Math.log10(low), Math.log10(high)];
    // A value without a logarithm lies left of the axis, where it is cut off.
    const share = (value) => (value > 0 ? 0.04 + (0.92 * (Math.log10(value) - a)) / (b - a) : -0.1);
    const round = powers(low, high);
    return { share, ticks: ticks(round.length > 1 ? round : roundNumbers(low, high)) };
  }
  const share = (value) => 0.04 + (0.92 * (value - low)) / (high - low);
  return { share, ticks: ticks(roundNumbers(low, high)) };
}

/** Linear up to the first positive meta-iteration and logarithmic beyond, if they span a factor of more than four. */
function trainingScale(checkpoints) {
  const positive = checkpoints.filter((value) => value > 0);
  const first = positive[0];
  const far = positive.length > 0 && positive.at(-1) > 4 * first;
  // The part from 0 to the first positive one is half as long as a factor of ten beyond.
  const bend = (value) => (!far ? value : value <= first ? (0.5 * value) / first : 0.5 + Math.log10(value / first));
  const [a, b] = [bend(checkpoints[0]), bend(checkpoints.at(-1))];
  const short = (value) => (value >= 1000 ? `${value / 1000}k` : String(value));
  const share = (value) => 0.03 + (0.94 * (bend(value) - a)) / (b - a || 1);
  return { share, ticks: checkpoints.map((value) => ({ value, text: short(value) })) };
}

/** A scale that is linear for values well below `linear` in magnitude, and logarithmic well beyond. */
function asinhScale(low, high, linear) {
  const bend = (value) => Math.asinh(value / linear);
  const [a, b] = [bend(low), bend(high)];
  const share = (value) => 0.04 + (0.92 * (bend(value) - a)) / (b - a || 1);
  const marks = [0];
  for (let power = Math.log10(linear); power < 9; power++) marks.push(10 ** power, -(10 ** power));
  return { share, ticks: ticks(marks.filter((value) => value >= low && value <= high).sort((p, q) => p - q)) };
}

const ticks = (values) => values.map((value) => ({ value, text: number(value, 3) }));

/** Two to six round numbers between two ends. */
function roundNumbers(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
  const values = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) values.push(i * step);
  return values;
}

/** The powers of ten between two ends; over a narrow range, twice and five times each as well. */
function powers(low, high) {
  const values = [];
  const factors = high / low > 200 ? [1] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of factors) {
      const value = factor * 10 ** power;
      if (value >= low && value <= high) values.push(value);
    }
  }
  return values;
}

/** A number with four significant digits, and a real minus sign. */
function number(value, digits = 4) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const rounded = Number(value.toPrecision(digits));
  const text = size >= 1e6 || size < 1e-4 ? rounded.toExponential().replace("e+", "e") : String(rounded);
  return text.replace("-", "−").replace("e-", "e−");
}

// ---- elements

function html(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== ""));
  return element;
}

function svg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function text(content, { x, y, anchor, dark }) {
  const element = svg("text", { x, y, "text-anchor": anchor, fill: ink(dark) });
  element.textContent = content;
  return element;
}

/** A menu below its name. */
function labelled(name, menu) {
  menu.setAttribute("aria-label", name);
  return html("label", {}, name, menu);
}

function button(label, action) {
  const element = html("button", { type: "button" }, label);
  element.addEventListener("click", action);
  return element;
}

/** Break a text into lines that fit a width, at about 6 pixels a letter. */
function wrap(content, width) {
  const lines = [""];
  for (const word of content.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (longer.length * 6 <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}
