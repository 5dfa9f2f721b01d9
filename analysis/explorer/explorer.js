// The explorer of a study. A notebook (through anywidget) and a static page both call `render` with a model that has
// the header, which describes the study, and all numbers as float32. Everything is computed and drawn here, so moving
// a slider needs neither a kernel nor a server.

const SVG = "http://www.w3.org/2000/svg";
const TASK_DIMS = ["task", "evaluation_task"];
const MAX_SEEDS_SHOWN = 4; // with more seeds the band is a 95 % interval, with fewer their range
const VIEWS = {
  training: { title: "Over meta-training", draw: drawTraining },
  inner: { title: "Along the inner loop", draw: drawInner },
  spectrum: { title: "Spectrum at the point", draw: drawSpectrum },
  tasks: { title: "Tasks at the point", draw: drawTasks },
  surface: { title: "Loss surface around the start of the inner loop", draw: drawSurface },
};
const DASHES = { "-": "", "--": "6 3", "-.": "7 3 2 3", ":": "2 3" };
const DESCRIBED = { checkpoint: "meta-iteration", inner_step: "inner step" };

export default { render };

function render({ model, el }) {
  const app = { model, root: html("div", { class: "ht-explorer" }), views: {}, pdf: null };
  el.replaceChildren(app.root);
  load(app);
  model.on("change:header", () => load(app));
  model.on("msg:custom", (message, buffers) => receive(app, message, buffers));
  const redraw = () => drawAll(app);
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", redraw);
  const theme = new MutationObserver(redraw); // JupyterLab changes its theme on the body
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  let width = 0;
  const size = new ResizeObserver(() => {
    if (app.root.clientWidth !== width) {
      width = app.root.clientWidth;
      redraw();
    }
  });
  size.observe(app.root);
  return () => {
    scheme.removeEventListener("change", redraw);
    theme.disconnect();
    size.disconnect();
  };
}

// ---- the data

/** Read the header and the numbers, keep what was chosen before as far as it still exists, and build the page. */
function load(app) {
  const header = app.model.get("header");
  const bytes = app.model.get("values");
  const buffer = bytes.buffer ? bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) : bytes;
  app.header = header;
  app.numbers = new Float32Array(buffer);
  app.variables = {};
  for (const [name, each] of Object.entries(header.variables)) {
    const strides = {};
    each.dims.reduceRight((step, dim, i) => ((strides[dim] = step), step * each.shape[i]), 1);
    const size = Object.fromEntries(each.dims.map((dim, i) => [dim, each.shape[i]]));
    const taskDim = each.dims.find((dim) => TASK_DIMS.includes(dim));
    app.variables[name] = { ...each, strides, size, taskDim };
  }
  const old = app.state;
  const names = header.learners.map((each) => each.name);
  const kept = old ? old.learners.filter((name) => names.includes(name)) : [];
  app.state = {
    quantity: old && header.menu.includes(old.quantity) ? old.quantity : header.menu[0],
    learners: kept.length ? kept : [...header.shown],
    seed: old && header.coords.seed.includes(old.seed) ? old.seed : null,
    task: old ? old.task : null,
    checkpoint: old && old.checkpoint < header.coords.checkpoint.length ? old.checkpoint : header.start,
    step: old ? old.step : 0,
    extra: old ? old.extra : {},
    log: old ? old.log : false,
  };
  build(app);
}

function variable(app) {
  return app.variables[app.state.quantity];
}

/** The positions of the dimensions that are chosen besides learner, seed and task. */
function place(app, changes = {}) {
  return { checkpoint: app.state.checkpoint, inner_step: app.state.step, ...app.state.extra, ...changes };
}

/** The values of all tasks (or the single value) of a variable for one learner and seed at a place. */
function taskValues(app, each, learner, seed, where, scaled) {
  const alpha = scaled && app.header.step_size ? app.header.step_size[learner][seed] ?? NaN : 1;
  let start = each.offset + learner * each.strides.learner + seed * each.strides.seed;
  for (const dim of each.dims.slice(3)) if (dim in where && dim !== each.taskDim) start += where[dim] * each.strides[dim];
  start += where.checkpoint * each.strides.checkpoint;
  const count = each.taskDim ? each.size[each.taskDim] : 1;
  const stride = each.taskDim ? each.strides[each.taskDim] : 0;
  return Array.from({ length: count }, (_, task) => alpha * app.numbers[start + task * stride]);
}

/**
 * The mean of a variable at a place with its band: over tasks and then over seeds, or over the tasks of the chosen
 * seed; or one task's value with its measured error. `count` says of how many values, `source` what the band is.
 */
function summary(app, name, learner, where, scaled = false) {
  const each = app.variables[name];
  if (app.state.seed === null) {
    const seeds = [...Array(each.size.seed).keys()];
    const perSeed = seeds.map((seed) => finite(taskValues(app, each, learner, seed, where, scaled)));
    const means = perSeed.filter((values) => values.length).map(mean);
    const middle = mean(means);
    const tasks = perSeed.reduce((sum, values) => sum + values.length, 0);
    const count = each.taskDim ? `${tasks} tasks of ${plural(means.length, "seed")}` : plural(means.length, "seed");
    if (means.length < 2) return { mean: middle, low: NaN, high: NaN, count, source: "one seed has no band" };
    if (seedsWithValues(app, name) <= MAX_SEEDS_SHOWN) {
      return { mean: middle, low: Math.min(...means), high: Math.max(...means), count, source: "range of the seeds" };
    }
    const half = app.header.half_widths[means.length] * deviation(means);
    return { mean: middle, low: middle - half, high: middle + half, count, source: "95 % interval over seeds" };
  }
  const seed = app.header.coords.seed.indexOf(app.state.seed);
  const values = taskValues(app, each, learner, seed, where, scaled);
  if (each.taskDim && app.state.task === null) {
    const known = finite(values);
    const middle = mean(known);
    const error = known.length > 1 ? deviation(known) / Math.sqrt(known.length) : NaN;
    const count = plural(known.length, "task");
    return { mean: middle, low: middle - error, high: middle + error, count, source: "standard error over tasks" };
  }
  const task = each.taskDim ? app.header.coords[each.taskDim].indexOf(app.state.task) : 0;
  const middle = task >= 0 ? values[task] : NaN;
  const errors = each.error ? taskValues(app, app.variables[each.error], learner, seed, where, scaled) : [];
  const error = errors.length === values.length ? errors[task] : errors[0] ?? 0;
  const source = each.error ? app.variables[each.error].long_name : "no error is measured";
  return { mean: middle, low: middle - error, high: middle + error, count: each.taskDim ? "1 task" : "1 seed", source };
}

/** The number of seeds that have any value of a variable. */
function seedsWithValues(app, name) {
  const each = app.variables[name];
  if (each.numSeeds === undefined) {
    const { seed, learner } = each.size;
    const inner = each.strides.seed;
    const has = (s) =>
      [...Array(learner).keys()].some((l) => {
        const start = each.offset + l * each.strides.learner + s * inner;
        return app.numbers.subarray(start, start + inner).some(Number.isFinite);
      });
    each.numSeeds = [...Array(seed).keys()].filter(has).length;
  }
  return each.numSeeds;
}

const finite = (values) => values.filter(Number.isFinite);
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : NaN);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function deviation(values) {
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}

/** The shown learners with their positions along the dimension. */
function shownLearners(app) {
  const all = app.header.learners.map((each, index) => ({ ...each, index }));
  return all.filter((each) => app.state.learners.includes(each.name));
}

function curve(app, learner, dim) {
  const key = JSON.stringify([learner.index, dim, place(app, { [dim]: 0 })]);
  if (!app.curves.has(key)) {
    const positions = app.header.coords[dim].map((_, i) => i);
    app.curves.set(key, positions.map((i) => summary(app, app.state.quantity, learner.index, place(app, { [dim]: i }))));
  }
  return app.curves.get(key);
}

// ---- the controls

function build(app) {
  const { header, state } = app;
  app.curves = new Map();
  const title = header.study ? `Explorer of the study ${header.study}` : "Explorer";
  app.live = html("p", { class: "sr-only", role: "status", "aria-live": "polite" });
  app.tip = html("div", { class: "tip", hidden: "" });
  app.note = html("p", { class: "soft note" });
  app.extras = html("div", { class: "extras" });
  app.table = html("table", {});
  app.about = html("p", { class: "soft about" });
  const quantity = select(header.menu, state.quantity, (value) => {
    state.quantity = value;
    state.extra = {};
    changed(app);
  });
  const seeds = select(["all", ...header.coords.seed], state.seed ?? "all", (value) => {
    state.seed = value === "all" ? null : Number(value);
    changed(app);
  });
  seeds.options[0].textContent = "mean over seeds";
  app.tasks = html("select", {});
  app.tasks.addEventListener("change", () => {
    state.task = app.tasks.value === "all" ? null : Number(app.tasks.value);
    changed(app);
  });
  const log = html("input", { type: "checkbox" });
  log.checked = state.log;
  log.addEventListener("change", () => {
    state.log = log.checked;
    changed(app);
  });
  app.sliders = {
    checkpoint: slider(app, "checkpoint", "Meta-iteration", header.coords.checkpoint),
    step: slider(app, "step", "Inner step", header.coords.inner_step ?? [0]),
  };
  const learners = html("fieldset", { class: "learners" }, html("legend", {}, "Learners"));
  for (const learner of header.learners) learners.append(learnerBox(app, learner));
  const choices = html(
    "div",
    { class: "choices" },
    labelled("Quantity", quantity),
    labelled("Seed", seeds),
    labelled("Task", app.tasks),
    app.extras,
    html("label", { class: "tick" }, log, " logarithmic values"),
  );
  const refresh = header.can_refresh && app.model.send ? button("Read the study again", () => send(app, { kind: "refresh" })) : "";
  const figures = Object.entries(VIEWS).map(([name, view]) => figure(app, name, view));
  const table = html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Values at the point" }, app.table);
  app.root.replaceChildren(
    html("h2", {}, title),
    choices,
    app.about,
    learners,
    html("div", { class: "sliders" }, app.sliders.checkpoint.row, app.sliders.step.row),
    table,
    app.live,
    html("div", { class: "views" }, ...figures),
    html("div", { class: "foot" }, refresh, app.note),
    app.tip,
  );
  if (header.left_out.length) {
    note(app, `Left out, because all quantities together are too large: ${header.left_out.join(", ")}.`);
  }
  changed(app);
}

function select(options, chosen, onChange) {
  const box = html("select", {}, ...options.map((value) => html("option", { value: String(value) }, String(value))));
  box.value = String(chosen);
  box.addEventListener("change", () => onChange(box.value));
  return box;
}

function slider(app, key, label, labels) {
  const input = html("input", { type: "range", min: "0", max: String(labels.length - 1), step: "1", "aria-label": label });
  input.dataset.slider = key;
  const shown = html("output", {});
  const show = () => {
    input.value = String(app.state[key]);
    shown.textContent = String(labels[app.state[key]]);
    input.setAttribute("aria-valuetext", `${label} ${labels[app.state[key]]}`);
  };
  input.addEventListener("input", () => {
    app.state[key] = Number(input.value);
    moved(app);
  });
  const row = html("label", {}, html("span", {}, `${label} `, shown), input);
  return { row, show, input };
}

function learnerBox(app, learner) {
  const box = html("input", { type: "checkbox", value: learner.name });
  box.checked = app.state.learners.includes(learner.name);
  box.addEventListener("change", () => {
    const names = app.header.learners.map((each) => each.name);
    const chosen = names.filter((name) => (name === learner.name ? box.checked : app.state.learners.includes(name)));
    if (chosen.length) app.state.learners = chosen;
    else box.checked = true; // one learner at least is shown
    changed(app);
  });
  const sample = svg("svg", { width: 26, height: 10, "aria-hidden": "true" });
  const dash = DASHES[learner.line] ?? "";
  sample.append(svg("line", { x1: 1, x2: 25, y1: 5, y2: 5, "stroke-width": 2.5, "stroke-dasharray": dash }));
  sample.firstChild.dataset.color = learner.color;
  return html("label", { class: "tick" }, box, sample, ` ${learner.label}`);
}

/** A view: its heading, its picture, and the buttons that copy its code and save it. */
function figure(app, name, view) {
  const holder = html("div", { class: "picture" });
  const code = html("pre", { hidden: "", tabindex: "0", "aria-label": `Python code of: ${view.title}` });
  const copy = button("Copy code", () => copyCode(app, name, code));
  const saveSvg = button("Save SVG", () => saveSvgFile(app, name));
  const savePdf = app.model.send ? button("Save PDF", () => send(app, { kind: "pdf", view: name, state: pythonState(app) })) : "";
  for (const each of [copy, saveSvg, savePdf]) {
    if (each) each.setAttribute("aria-label", `${each.textContent}: ${view.title}`);
  }
  const buttons = html("div", { class: "buttons" }, copy, saveSvg, savePdf);
  const whole = html("figure", { "data-view": name }, html("figcaption", {}, view.title), holder, buttons, code);
  app.views[name] = { holder, buttons, code, whole };
  return whole;
}

/** After another choice than that of a slider: what the sliders and menus offer may have changed. */
function changed(app) {
  const { header, state } = app;
  const each = variable(app);
  app.curves.clear();
  app.about.textContent = each.long_name;
  const labels = each.taskDim && state.seed !== null ? header.coords[each.taskDim] : [];
  if (!labels.includes(state.task)) state.task = null;
  const options = ["all", ...labels].map((value) => html("option", { value: String(value) }, String(value)));
  options[0].textContent = "mean over tasks";
  app.tasks.replaceChildren(...options);
  app.tasks.value = String(state.task ?? "all");
  app.tasks.disabled = !labels.length;
  const further = each.dims.slice(3).filter((dim) => dim !== each.taskDim && dim !== "inner_step");
  state.extra = Object.fromEntries(further.map((dim) => [dim, Math.min(state.extra[dim] ?? 0, each.size[dim] - 1)]));
  app.extras.replaceChildren(...further.map((dim) => extraMenu(app, dim)));
  app.sliders.step.input.disabled = !("inner_step" in header.coords);
  moved(app);
}

function extraMenu(app, dim) {
  const labels = app.header.coords[dim];
  const box = select(labels.map((_, index) => index), app.state.extra[dim], (value) => {
    app.state.extra[dim] = Number(value);
    changed(app);
  });
  labels.forEach((label, index) => (box.options[index].textContent = typeof label === "number" ? number(label) : label));
  return labelled(dim.replaceAll("_", " "), box);
}

function moved(app) {
  app.sliders.checkpoint.show();
  app.sliders.step.show();
  for (const view of Object.values(app.views)) view.code.hidden = true;
  writeTable(app);
  drawAll(app);
}

/** The words for the place at which all views are. */
function pointText(app, each = variable(app)) {
  const { header, state } = app;
  const words = [`meta-iteration ${header.coords.checkpoint[state.checkpoint]}`];
  if (each.dims.includes("inner_step")) words.push(`inner step ${header.coords.inner_step[state.step]}`);
  words.push(state.seed === null ? "mean over seeds" : `seed ${state.seed}`);
  if (state.seed !== null && each.taskDim) words.push(state.task === null ? "mean over tasks" : `task ${state.task}`);
  for (const [dim, index] of Object.entries(state.extra)) words.push(`${dim} ${header.coords[dim][index]}`);
  return words.join(", ");
}

function writeTable(app) {
  const heads = ["Learner", "Value", "Error", "Of"].map((text) => html("th", { scope: "col" }, text));
  const said = [];
  let source = "";
  const rows = shownLearners(app).map((learner) => {
    const found = summary(app, app.state.quantity, learner.index, place(app));
    const known = Number.isFinite(found.mean);
    if (known) source = `; error: ${found.source}`;
    const cells = known ? [number(found.mean), errorText(found), found.count] : ["not measured", "", ""];
    said.push(`${learner.label}: ${cells[0]} ${cells[1]}`.trim());
    const row = html("tr", { "data-learner": learner.name }, html("th", { scope: "row" }, learner.label));
    row.append(...cells.map((cell) => html("td", {}, cell)));
    return row;
  });
  const caption = html("caption", {}, html("b", {}, app.state.quantity), ` at ${pointText(app)}${source}`);
  app.table.replaceChildren(caption, html("thead", {}, html("tr", {}, ...heads)), html("tbody", {}, ...rows));
  app.live.textContent = `${app.state.quantity} at ${pointText(app)}. ${said.join("; ")}.`;
}

function errorText({ mean, low, high }) {
  if (!Number.isFinite(low) || !Number.isFinite(high)) return "";
  const [down, up] = [mean - low, high - mean];
  if (up === 0 && down === 0) return "";
  return Math.abs(up - down) <= 1e-3 * Math.max(up, down) ? `± ${number(up, 2)}` : `${number(low)} to ${number(high)}`;
}

// ---- drawing

function isDark() {
  const theme = document.body.dataset.jpThemeLight;
  return theme === undefined ? window.matchMedia("(prefers-color-scheme: dark)").matches : theme === "false";
}

function drawAll(app) {
  const dark = isDark();
  app.root.classList.toggle("dark", dark);
  for (const line of app.root.querySelectorAll("[data-color]")) line.setAttribute("stroke", visible(line.dataset.color, dark));
  for (const [name, view] of Object.entries(VIEWS)) {
    const { holder, buttons, whole } = app.views[name];
    const width = Math.max(240, holder.clientWidth || 480);
    const drawn = view.draw(app, width, dark);
    buttons.hidden = drawn.missing !== undefined;
    whole.hidden = name === "surface" && !("loss_surface" in app.variables);
    if (drawn.missing !== undefined) {
      holder.replaceChildren(html("p", { class: "soft missing" }, drawn.missing));
    } else {
      drawn.picture.setAttribute("aria-label", `${view.title}. ${drawn.text}`);
      holder.replaceChildren(drawn.picture);
      listen(app, drawn);
    }
  }
}

/** A colour that can be told from the background: dark colours become lighter on a dark page. */
function visible(color, dark) {
  if (!dark) return color;
  const parts = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  const brightness = (0.3 * parts[0] + 0.59 * parts[1] + 0.11 * parts[2]) / 255;
  const share = Math.max(0, 0.62 - brightness);
  return `rgb(${parts.map((part) => Math.round(part + share * (255 - part))).join(",")})`;
}

const ink = (dark) => (dark ? "#e8e8e6" : "#1c1c1c");
const faint = (dark) => (dark ? "#44474c" : "#dddddb");

/** An empty chart with its axes. x and y are scales; `place` maps values to positions in the picture. */
function chart({ width, height, x, y, xlabel, ylabel, dark, left = 52, rows = null }) {
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", xmlns: SVG });
  picture.setAttribute("font-family", "system-ui, sans-serif");
  picture.setAttribute("font-size", "12");
  const box = { left, right: width - 12, top: 24, bottom: height - 38 };
  const px = (value) => box.left + x.share(value) * (box.right - box.left);
  const py = (value) => (rows ? box.top + ((value + 1) / (rows + 0.4)) * (box.bottom - box.top) : box.bottom - y.share(value) * (box.bottom - box.top));
  const clip = `clip-${Math.random().toString(36).slice(2)}`;
  const defs = svg("clipPath", { id: clip });
  defs.append(svg("rect", { x: box.left - 4, y: box.top - 4, width: box.right - box.left + 8, height: box.bottom - box.top + 8 }));
  picture.append(defs);
  let end = -Infinity;
  for (const tick of x.ticks) {
    const at = px(tick.value);
    picture.append(svg("line", { x1: at, x2: at, y1: box.top, y2: box.bottom, stroke: faint(dark) }));
    const half = 3.4 * tick.text.length;
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

/** Lines of means with bands over one dimension, with a mark at the present position of its slider. */
function drawLines(app, width, dark, dim, x, key) {
  const learners = shownLearners(app);
  const curves = learners.map((learner) => curve(app, learner, dim));
  const y = valueScale(app, learners);
  if (!y) return { missing: "Nothing of this is measured yet." };
  const at = (i) => app.header.coords[dim][i];
  const area = chart({ width, height: 270, x, y, xlabel: DESCRIBED[dim], ylabel: app.state.quantity, dark });
  const present = area.px(at(app.state[key]));
  area.inside.append(svg("line", { x1: present, x2: present, y1: area.box.top, y2: area.box.bottom, stroke: ink(dark), "stroke-dasharray": "1 3" }));
  const hits = [];
  curves.forEach((points, row) => {
    const color = visible(learners[row].color, dark);
    for (const run of runs(points, (point) => Number.isFinite(point.low) && Number.isFinite(point.high))) {
      const up = run.map((i) => `${area.px(at(i))},${area.py(points[i].high)}`);
      const down = run.map((i) => `${area.px(at(i))},${area.py(points[i].low)}`).reverse();
      area.inside.append(svg("polygon", { points: [...up, ...down].join(" "), fill: color, opacity: 0.16, class: "band" }));
    }
    for (const run of runs(points, (point) => Number.isFinite(point.mean))) {
      const line = run.map((i) => `${area.px(at(i))},${area.py(points[i].mean)}`).join(" ");
      const dash = DASHES[learners[row].line] ?? "";
      area.inside.append(svg("polyline", { points: line, fill: "none", stroke: color, "stroke-width": 2, "stroke-dasharray": dash }));
    }
    points.forEach((point, i) => {
      if (!Number.isFinite(point.mean)) return;
      const [cx, cy] = [area.px(at(i)), area.py(point.mean)];
      const r = i === app.state[key] ? 5 : 3;
      area.inside.append(svg("circle", { cx, cy, r, fill: color }));
      const text = [learners[row].label, `${DESCRIBED[dim]} ${at(i)}`, valueText(app, point), point.source];
      hits.push({ x: cx, y: cy, text, go: () => (app.state[key] = i) });
    });
  });
  const told = learners.map((learner, row) => `${learner.label} from ${firstAndLast(curves[row])}`).join("; ");
  return { picture: area.picture, hits, text: `${app.state.quantity} by ${DESCRIBED[dim]}: ${told}.` };
}

function drawTraining(app, width, dark) {
  return drawLines(app, width, dark, "checkpoint", trainingScale(app.header.coords.checkpoint), "checkpoint");
}

function drawInner(app, width, dark) {
  if (!variable(app).dims.includes("inner_step")) return { missing: "This quantity has one value for a whole inner loop." };
  const steps = app.header.coords.inner_step;
  const ticks = steps.map((value) => ({ value, text: String(value) }));
  const span = steps.length - 1 || 1;
  const scale = { share: (value) => 0.03 + (0.94 * (value - steps[0])) / span, ticks };
  return drawLines(app, width, dark, "inner_step", scale, "step");
}

/** One row for each learner with a dot for each task, and a line at the mean. */
function drawTasks(app, width, dark) {
  const each = variable(app);
  if (!each.taskDim) return { missing: "This quantity is stored as a mean over tasks." };
  const learners = shownLearners(app);
  const seeds = app.header.coords.seed.map((_, i) => i).filter((i) => app.state.seed === null || app.header.coords.seed[i] === app.state.seed);
  const found = learners.map((learner) =>
    seeds.flatMap((seed) => taskValues(app, each, learner.index, seed, place(app), false).map((value, task) => ({ value, seed, task }))),
  );
  const scale = scaleOf(finite(found.flat().map((point) => point.value)), app.state.log);
  if (!scale) return { missing: "Nothing is measured at this point yet." };
  const area = chart({ width, height: rowsHeight(learners), x: scale, y: null, xlabel: app.state.quantity, dark, left: 12, rows: learners.length });
  const hits = [];
  learners.forEach((learner, row) => {
    const color = visible(learner.color, dark);
    rowLabel(area, learner, row, color);
    found[row].forEach(({ value, seed, task }) => {
      if (!Number.isFinite(value) || (app.state.log && value <= 0)) return;
      const names = [`seed ${app.header.coords.seed[seed]}`, `task ${app.header.coords[each.taskDim][task]}`];
      const chosen = app.state.task === app.header.coords[each.taskDim][task];
      const [cx, cy] = [area.px(value), area.py(row)];
      area.inside.append(svg("circle", { cx, cy, r: chosen ? 6 : 4, fill: color, opacity: chosen ? 1 : 0.5 }));
      hits.push({ x: cx, y: cy, text: [learner.label, names.join(", "), `${app.state.quantity} ${number(value)}`] });
    });
    const { mean } = summary(app, app.state.quantity, learner.index, place(app));
    if (Number.isFinite(mean)) {
      const at = area.px(mean);
      area.inside.append(svg("line", { x1: at, x2: at, y1: area.py(row) - 10, y2: area.py(row) + 10, stroke: ink(dark), "stroke-width": 2 }));
    }
  });
  const told = learners.map((learner, row) => `${learner.label} ${plural(finite(found[row].map((p) => p.value)).length, "task")}`);
  return { picture: area.picture, hits, text: `${app.state.quantity} of single tasks at ${pointText(app)}: ${told.join("; ")}.` };
}

/** One row for each learner: the mean density of eigenvalues, and a mark at each eigenvalue that was computed. */
function drawSpectrum(app, width, dark) {
  const { header } = app;
  const { eigenvalue, density } = app.variables;
  if (!eigenvalue && !density) return { missing: "The study measures no eigenvalues." };
  const learners = shownLearners(app);
  const where = { checkpoint: app.state.checkpoint, inner_step: app.state.step };
  const marks = learners.map((learner) => (eigenvalue ? eigenvalues(app, learner, where) : []));
  const grid = density ? header.coords.grid : [];
  const heights = learners.map((learner) => grid.map((_, i) => summary(app, "density", learner.index, { ...where, grid: i }).mean));
  const peak = Math.max(0, ...finite(heights.flat()));
  const values = marks.flat().map((mark) => mark.value);
  grid.forEach((value, i) => heights.some((row) => row[i] > 1e-3 * peak) && values.push(value));
  if (!values.length) return { missing: "No eigenvalue is measured at this point." };
  const scale = asinhScale(Math.min(0, ...values), Math.max(0, ...values), header.step_size ? 0.1 : 1);
  const xlabel = header.step_size ? "eigenvalue times step size" : "eigenvalue";
  const area = chart({ width, height: rowsHeight(learners), x: scale, y: null, xlabel, dark, left: 12, rows: learners.length });
  const hits = [];
  learners.forEach((learner, row) => {
    const color = visible(learner.color, dark);
    const base = area.py(row);
    const unit = 0.8 * (area.py(1) - area.py(0));
    if (finite(heights[row]).length) {
      const line = grid.map((value, i) => `${area.px(value)},${base - (unit * (heights[row][i] || 0)) / peak}`);
      const points = [`${area.px(grid[0])},${base}`, ...line, `${area.px(grid.at(-1))},${base}`].join(" ");
      area.inside.append(svg("polygon", { points, fill: color, opacity: 0.3 }));
    }
    for (const mark of marks[row]) {
      const at = area.px(mark.value);
      const opacity = marks[row].length > 20 ? 0.35 : 1;
      area.inside.append(svg("line", { x1: at, x2: at, y1: base - 8, y2: base + 8, stroke: color, opacity, "stroke-width": 1.5 }));
      const error = Number.isFinite(mark.error) ? ` ± ${number(mark.error, 2)} (residual)` : "";
      hits.push({ x: at, y: base, text: [learner.label, `${xlabel} ${number(mark.value)}${error}`, mark.of] });
    }
    rowLabel(area, learner, row, color);
  });
  const largest = (row) => (row.length ? number(Math.max(...row.map((mark) => mark.value))) : "not measured");
  const told = learners.map((each, row) => `${each.label} largest ${largest(marks[row])}`);
  return { picture: area.picture, hits, text: `${xlabel} at ${pointText(app, eigenvalue ?? density)}: ${told.join("; ")}.` };
}

/** The computed eigenvalues of the chosen seeds and tasks, times the step size where there is a density. */
function eigenvalues(app, learner, where) {
  const { header, state } = app;
  const { eigenvalue } = app.variables;
  const residual = app.variables[eigenvalue.error];
  const found = [];
  header.coords.seed.forEach((seed, s) => {
    if (state.seed !== null && seed !== state.seed) return;
    header.coords.eigen_index.forEach((_, i) => {
      const at = { ...where, eigen_index: i };
      const errors = residual ? taskValues(app, residual, learner.index, s, at, true) : [];
      taskValues(app, eigenvalue, learner.index, s, at, true).forEach((value, t) => {
        const task = header.coords.task[t];
        if (!Number.isFinite(value) || (state.task !== null && task !== state.task)) return;
        found.push({ value, error: errors[t], of: `seed ${seed}, task ${task}, number ${i} by magnitude` });
      });
    });
  });
  return found;
}

/** A map of the support loss for each learner that has one at this checkpoint. */
function drawSurface(app, width, dark) {
  const each = app.variables.loss_surface;
  if (!each) return { missing: "The study measures no loss surface." };
  const [xs, ys] = [app.header.coords.surface_x, app.header.coords.surface_y];
  const learners = shownLearners(app);
  const at = (learner, x, y) => summary(app, "loss_surface", learner.index, { checkpoint: app.state.checkpoint, surface_x: x, surface_y: y }).mean;
  const maps = learners.map((learner) => ys.map((_, y) => xs.map((_, x) => at(learner, x, y))));
  const values = finite(maps.flat(2)).sort((a, b) => a - b);
  if (!values.length) return { missing: "No loss surface is measured at this meta-iteration." };
  const [low, high] = [values[0], values[Math.floor(0.95 * (values.length - 1))]];
  const columns = Math.max(1, Math.min(learners.length, Math.floor(width / 150)));
  const size = Math.min(220, Math.floor(width / columns) - 10);
  const height = Math.ceil(learners.length / columns) * (size + 26) + 24;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", xmlns: SVG });
  picture.setAttribute("font-family", "system-ui, sans-serif");
  picture.setAttribute("font-size", "12");
  const hits = [];
  learners.forEach((learner, index) => {
    const [left, top] = [(index % columns) * (size + 10), Math.floor(index / columns) * (size + 26) + 18];
    picture.append(text(learner.label, { x: left, y: top - 5, anchor: "start", dark }));
    const [w, h] = [size / xs.length, size / ys.length];
    maps[index].forEach((row, y) =>
      row.forEach((value, x) => {
        if (!Number.isFinite(value)) return;
        const [cx, cy] = [left + x * w, top + (ys.length - 1 - y) * h];
        const level = Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
        const fill = app.header.cividis[Math.round(level * (app.header.cividis.length - 1))];
        picture.append(svg("rect", { x: cx, y: cy, width: w + 0.5, height: h + 0.5, fill }));
        const text = [learner.label, `descent ${number(xs[x])}, random ${number(ys[y])}`, `support loss ${number(value)}`];
        hits.push({ x: cx + w / 2, y: cy + h / 2, text });
      }),
    );
    picture.append(svg("circle", { cx: left + size / 2, cy: top + size / 2, r: 3, fill: "#fff", stroke: "#000" }));
  });
  const legend = `x: descent direction, y: random direction; support loss from ${number(low)} (dark) to ${number(high)} (light)`;
  wrap(legend, width).forEach((line, i) => picture.append(text(line, { x: 0, y: height - 16 + 13 * i, anchor: "start", dark })));
  return { picture, hits, text: `Support loss at meta-iteration ${app.header.coords.checkpoint[app.state.checkpoint]}, from ${number(low)} to ${number(high)}.` };
}

const rowsHeight = (learners) => Math.max(140, 70 + 52 * learners.length);

/** The learner's name at the left edge, above its row; a halo keeps it readable over dots. */
function rowLabel(area, learner, row, color) {
  const label = text(learner.label, { x: area.box.left + 2, y: area.py(row) - 14, anchor: "start", dark: area.dark });
  label.setAttribute("fill", color);
  label.setAttribute("font-weight", "600");
  area.inside.append(label);
}

function valueText(app, point) {
  return `${app.state.quantity} ${number(point.mean)} ${errorText(point)}`.trim();
}

function firstAndLast(points) {
  const known = points.filter((point) => Number.isFinite(point.mean));
  return known.length ? `${number(known[0].mean)} to ${number(known.at(-1).mean)}` : "nothing measured";
}

/** The positions of the points that pass a test, in runs without a gap: what is not measured stays blank. */
function runs(points, test) {
  const found = [];
  points.forEach((point, i) => {
    if (!test(point)) return;
    if (i > 0 && found.length && found.at(-1).at(-1) === i - 1) found.at(-1).push(i);
    else found.push([i]);
  });
  return found;
}

// ---- scales: `share` maps a value to 0 (start of the axis) up to 1 (its end)

/** The scale of the values, the same at all positions of both sliders, so that moving one does not move the axis. */
function valueScale(app, learners) {
  const key = "scale";
  if (!app.curves.has(key)) {
    const steps = variable(app).dims.includes("inner_step") ? app.header.coords.inner_step.length : 1;
    const points = [];
    for (const learner of learners) {
      for (let c = 0; c < app.header.coords.checkpoint.length; c++) {
        for (let s = 0; s < steps; s++) points.push(summary(app, app.state.quantity, learner.index, place(app, { checkpoint: c, inner_step: s })));
      }
    }
    const means = finite(points.map((point) => point.mean));
    const reach = 0.5 * (Math.max(...means) - Math.min(...means)); // a wide band must not squeeze the means
    const ends = finite(points.flatMap((point) => [point.low, point.high]));
    const near = ends.filter((end) => end >= Math.min(...means) - reach && end <= Math.max(...means) + reach);
    app.curves.set(key, scaleOf([...means, ...near], app.state.log));
  }
  return app.curves.get(key);
}

function scaleOf(values, log) {
  const usable = log ? values.filter((value) => value > 0) : values;
  if (!usable.length) return null;
  let [low, high] = [usable.reduce((a, b) => Math.min(a, b)), usable.reduce((a, b) => Math.max(a, b))];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  if (log) {
    const [a, b] = [Math.log10(low), Math.log10(high)];
    const share = (value) => (value > 0 ? 0.04 + (0.92 * (Math.log10(value) - a)) / (b - a) : -0.1);
    return { share, ticks: ticks(powers(low, high)) };
  }
  const share = (value) => 0.04 + (0.92 * (value - low)) / (high - low);
  return { share, ticks: ticks(roundNumbers(low, high)) };
}

/** Linear up to the first positive meta-iteration and logarithmic beyond, if they span a factor of more than four. */
function trainingScale(checkpoints) {
  const positive = checkpoints.filter((value) => value > 0);
  const first = positive[0];
  const far = positive.length > 0 && positive.at(-1) > 4 * first;
  const bend = (value) => (!far ? value : value <= first ? (0.5 * value) / first : 0.5 + Math.log10(value / first));
  const [a, b] = [bend(checkpoints[0]), bend(checkpoints.at(-1))];
  const short = (value) => (value >= 1000 ? `${value / 1000}k` : String(value));
  const share = (value) => 0.03 + (0.94 * (bend(value) - a)) / (b - a || 1);
  return { share, ticks: checkpoints.map((value) => ({ value, text: short(value) })) };
}

function asinhScale(low, high, linear) {
  const bend = (value) => Math.asinh(value / linear);
  const [a, b] = [bend(low), bend(high)];
  const share = (value) => 0.04 + (0.92 * (bend(value) - a)) / (b - a || 1);
  const marks = [0];
  for (let power = Math.log10(linear); power < 9; power++) marks.push(10 ** power, -(10 ** power));
  return { share, ticks: ticks(marks.filter((value) => value >= low && value <= high).sort((p, q) => p - q)) };
}

const ticks = (values) => values.map((value) => ({ value, text: number(value, 3) }));

/** Four to six round numbers between two ends. */
function roundNumbers(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
  return found;
}

function powers(low, high) {
  const found = [];
  const factors = high / low > 200 ? [1] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of factors) {
      const value = factor * 10 ** power;
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found;
}

/** A number with four significant digits, and a real minus sign. */
function number(value, digits = 4) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const rounded = Number(value.toPrecision(digits));
  const text = size >= 1e6 || size < 1e-4 ? rounded.toExponential().replace("e+", "e") : String(rounded);
  return text.replace("-", "−").replace("e-", "e−");
}

// ---- hovering, code and files

/** Show the nearest value near the pointer; a click moves the sliders there. */
function listen(app, { picture, hits }) {
  const ring = svg("circle", { r: 8, fill: "none", stroke: "currentColor", "stroke-width": 1.5, visibility: "hidden", class: "ring" });
  picture.append(ring);
  const nearest = (event) => {
    const box = picture.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const far = (hit) => Math.hypot(hit.x - x, hit.y - y);
    const best = hits.reduce((a, b) => (a && far(a) <= far(b) ? a : b), null);
    return best && far(best) < 30 ? best : null;
  };
  const show = (event) => {
    const hit = nearest(event);
    app.tip.hidden = !hit;
    ring.setAttribute("visibility", hit ? "visible" : "hidden");
    if (!hit) return;
    ring.setAttribute("cx", hit.x);
    ring.setAttribute("cy", hit.y);
    const same = hits.filter((other) => other.text[0] !== hit.text[0] && Math.hypot(other.x - hit.x, other.y - hit.y) < 2);
    const also = same.length ? [`also: ${[...new Set(same.map((other) => other.text[0]))].join(", ")}`] : [];
    app.tip.replaceChildren(...[...hit.text, ...also].map((line) => html("div", {}, line)));
    const root = app.root.getBoundingClientRect();
    const box = picture.getBoundingClientRect();
    const left = Math.min(box.left - root.left + hit.x + 12, root.width - app.tip.offsetWidth - 4);
    app.tip.style.left = `${Math.max(0, left)}px`;
    app.tip.style.top = `${box.top - root.top + hit.y + 14}px`;
  };
  picture.addEventListener("pointermove", show);
  picture.addEventListener("pointerdown", show);
  picture.addEventListener("pointerleave", () => {
    app.tip.hidden = true;
    ring.setAttribute("visibility", "hidden");
  });
  picture.addEventListener("click", (event) => {
    const hit = nearest(event);
    if (hit && hit.go) {
      hit.go();
      app.tip.hidden = true;
      moved(app);
    }
  });
}

async function copyCode(app, view, holder) {
  holder.textContent = pythonCode(app, view);
  holder.hidden = false;
  try {
    await navigator.clipboard.writeText(holder.textContent);
    note(app, "The code is copied.");
  } catch {
    window.getSelection().selectAllChildren(holder); // a page without a secure address may not use the clipboard
    note(app, "The code is selected; copy it with Ctrl+C.");
  }
}

function saveSvgFile(app, view) {
  const { picture } = VIEWS[view].draw(app, 560, false); // in the colours of a white page
  picture.insertBefore(svg("rect", { width: "100%", height: "100%", fill: "#fff" }), picture.firstChild);
  const learners = shownLearners(app);
  const name = svg("title", {});
  name.textContent = `${app.state.quantity} at ${pointText(app)}: ${learners.map((each) => each.label).join(", ")}`;
  picture.prepend(name);
  download(new XMLSerializer().serializeToString(picture), "image/svg+xml", `${app.state.quantity}-${view}.svg`);
  note(app, "The picture is saved.");
}

function download(content, type, name) {
  const link = html("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function send(app, message) {
  note(app, "The kernel is at work …");
  app.model.send(message);
}

function receive(app, message, buffers) {
  if (message.kind === "pdf") download(buffers[0], "application/pdf", message.name);
  note(app, message.text);
}

function note(app, text) {
  app.note.textContent = text;
  app.live.textContent = text;
}

/** The choice with names and values in place of positions, as Python takes it. */
function pythonState(app) {
  const { header, state } = app;
  const { quantity, learners, seed, task, extra, log } = state;
  const inner_step = (header.coords.inner_step ?? [0])[state.step];
  return { quantity, learners, seed, task, checkpoint: header.coords.checkpoint[state.checkpoint], inner_step, extra, log };
}

/** The Python code of a view, from the templates of analysis/explorer/code.py, which fills them in the same way. */
function pythonCode(app, view) {
  const { quantity } = app.state;
  const { begin, bodies, canvas, means } = app.header.code;
  const parts = [fill(begin, fields(app, view, quantity)), canvas[view] ?? canvas.others];
  const add = (name, body) => {
    const texts = fields(app, view, name);
    parts.push(fill(means[kindOfMean(app, name)], texts), fill(bodies[body], texts));
  };
  if (view === "training" || view === "inner") add(quantity, view);
  if (view === "surface") add("loss_surface", "surface");
  if (view === "spectrum" && app.variables.density) add("density", "density");
  if (view === "spectrum" && app.variables.eigenvalue) parts.push(fill(bodies.eigenvalues, fields(app, view, "eigenvalue")));
  if (view === "spectrum" || view === "tasks") parts.push(fill(bodies[view], fields(app, view, quantity)));
  return [...parts, ""].join("\n");
}

function kindOfMean(app, name) {
  if (app.state.seed === null) return "seeds";
  return app.variables[name].taskDim && app.state.task === null ? "tasks" : "point";
}

function fill(template, texts) {
  const lines = template.split("\n").filter((line) => {
    const only = line.match(/^\{\{(\w+)\}\}$/);
    return !only || texts[only[1]];
  });
  return lines.join("\n").replace(/\{\{(\w+)\}\}/g, (_, name) => texts[name]);
}

function fields(app, view, name) {
  const { header } = app;
  const state = pythonState(app);
  const each = app.variables[name];
  const quoted = JSON.stringify;
  const list = (named) => Object.entries(named).map(([key, value]) => `${key}=${quoted(value)}`).join(", ");
  const fixed = ({ training: ["inner_step"], inner: ["checkpoint"] }[view] ?? ["checkpoint", "inner_step"]).filter((dim) => each.dims.includes(dim));
  const at = list(Object.fromEntries(fixed.map((dim) => [dim, state[dim]])));
  const extra = list(Object.fromEntries(Object.entries(state.extra).filter(([dim]) => each.dims.includes(dim))));
  const scale = name === "eigenvalue" && view === "spectrum" && header.step_size ? ' * ds["step_size"]' : "";
  const one = list({ seed: state.seed, ...(each.taskDim ? { [each.taskDim]: state.task } : {}) });
  const values = (which) => {
    const read = header.has_status ? `measured(ds, "${which}")` : `ds["${which}"]`;
    return (scale ? `(${read}${scale})` : read) + (extra ? `.isel(${extra})` : "") + (at ? `.sel(${at})` : "");
  };
  const further = Object.entries(state.extra).map(([dim, index]) => `${dim} ${header.coords[dim][index]}`);
  const label = [name, ...further, ...fixed.map((dim) => `${DESCRIBED[dim]} ${state[dim]}`)].join(", ");
  const colors = shownLearners(app).map((learner) => `${quoted(learner.name)}: ${quoted(learner.color)}`);
  return {
    open: header.source === null ? "" : "\nimport analysis",
    study: header.source === null ? "# ds is the Dataset that you explored" : `ds = analysis.open_study(${quoted(header.source)})`,
    colors: `{${colors.join(", ")}}`,
    values: values(name),
    error: each.error ? `${values(each.error)}.sel(${one})` : "0",
    seed: quoted(state.seed),
    axis: view === "training" ? "from analysis.drawing.references import training_axis" : "",
    task_dim: each.taskDim ?? "",
    point: one,
    one_seed: state.seed === null ? "" : `.sel(seed=${quoted(state.seed)})`,
    chosen: state.seed === null ? "" : `.sel(${state.task === null ? `seed=${quoted(state.seed)}` : one})`,
    x: view === "training" ? "checkpoint" : "inner_step",
    xlabel: view === "training" ? "meta-iteration" : "inner step",
    label: quoted(label),
    yscale: state.log ? 'ax.set_yscale("log")' : "",
    tasks_scale: state.log ? 'ax.set_xscale("log")' : "",
    linear_width: header.step_size ? "0.1" : "1",
    spectrum_label: header.step_size ? "eigenvalue times step size" : "eigenvalue",
  };
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
