// The explorer of a study. A notebook (through anywidget) and a static page both call `render` with a model that has
// the header, which describes the study, and all numbers as float32. Everything is computed and drawn here, so moving
// a slider needs neither a kernel nor a server. The other modules come before this text in one and the same ES module
// (see MODULES in explorer.py), and so their functions are known here.
//
// `app` is one explorer on a page: its model, the header and the numbers, `state` (what is chosen, with checkpoint and
// step as positions), and the elements of the page that change.

const VIEWS = {
  training: { title: "Over meta-training", draw: drawTraining },
  inner: { title: "Along the inner loop", draw: drawInner },
  spectrum: { title: "Spectrum at the point", draw: drawSpectrum },
  tasks: { title: "Tasks at the point", draw: drawTasks },
  surface: { title: "Loss surface around the start of the inner loop", draw: drawSurface },
};

export default { render };

/** Build the explorer in the element `el`; returns the function that anywidget calls when the element is removed. */
function render({ model, el }) {
  const app = { model, root: html("div", { class: "ht-explorer" }), views: {} };
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

// ---- the study that is shown

/** Read the header and the numbers, keep what was chosen before as far as it still exists, and build the page. */
function load(app) {
  const header = app.model.get("header");
  const bytes = app.model.get("values");
  // A page gives the buffer itself, a notebook a view into one, whose numbers may begin at any byte. The copy of them begins
  // at byte 0, because a Float32Array has to begin at a multiple of 4.
  const buffer = bytes.buffer ? bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) : bytes;
  app.header = header;
  app.numbers = new Float32Array(buffer);
  app.variables = {};
  for (const [name, each] of Object.entries(header.variables)) {
    const strides = {}; // how far apart in the numbers two neighbours along a dimension are; the last dimension has 1
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
    fit: old ? old.fit : false,
  };
  build(app);
}

// ---- the controls

/** Build the page from the header and the present choice. */
function build(app) {
  const { header } = app;
  app.curves = new Map(); // the curves that were computed for the present choice, see `curve` in data.js
  const title = header.study ? `Explorer of the study ${header.study}` : "Explorer";
  app.live = html("p", { class: "sr-only", role: "status", "aria-live": "polite" }); // read out, and not seen
  app.tip = html("div", { class: "tip", hidden: "" });
  app.note = html("p", { class: "soft note" });
  app.table = html("table", {});
  app.about = html("p", { class: "soft about" });
  app.sliders = {
    checkpoint: slider(app, "checkpoint", "Meta-iteration", header.coords.checkpoint),
    step: slider(app, "step", "Inner step", header.coords.inner_step ?? [0]),
  };
  const learners = html("fieldset", { class: "learners" }, html("legend", {}, "Learners"));
  for (const learner of header.learners) learners.append(learnerBox(app, learner));
  const refresh = header.can_refresh && app.model.send ? button("Read the study again", () => send(app, { kind: "refresh" })) : "";
  const figures = Object.entries(VIEWS).map(([name, view]) => figure(app, name, view));
  const table = html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Values at the point" }, app.table);
  app.root.replaceChildren(
    html("h2", {}, title),
    menus(app),
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

/** The menus of quantity, seed, task and further dimensions, and the two options of the axes. */
function menus(app) {
  const { header, state } = app;
  app.extras = html("div", { class: "extras" });
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
  const [log, fit] = ["log", "fit"].map((name) => {
    const box = html("input", { type: "checkbox" });
    box.checked = state[name];
    box.addEventListener("change", () => {
      state[name] = box.checked;
      changed(app);
    });
    return box;
  });
  return html(
    "div",
    { class: "choices" },
    labelled("Quantity", quantity),
    labelled("Seed", seeds),
    labelled("Task", app.tasks),
    app.extras,
    html("label", { class: "tick" }, log, " logarithmic values"),
    html("label", { class: "tick" }, fit, " axes fit the curves"),
  );
}

/** A menu of the options; `onChange` is called with the text of the one that the user chooses. */
function select(options, chosen, onChange) {
  const box = html("select", {}, ...options.map((value) => html("option", { value: String(value) }, String(value))));
  box.value = String(chosen);
  box.addEventListener("change", () => onChange(box.value));
  return box;
}

/** A slider over the positions of `labels`, which sets `app.state[key]`; `show` moves it to the present position. */
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

/** The tick box that shows or hides a learner, with a sample of the learner's line. */
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

/** Show a choice that was made by anything but a slider: it may change what the menus and sliders offer. */
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
  // The first three dimensions are learner, seed and checkpoint (LEADING_DIMS in export.py).
  const further = each.dims.slice(3).filter((dim) => dim !== each.taskDim && dim !== "inner_step");
  state.extra = Object.fromEntries(further.map((dim) => [dim, Math.min(state.extra[dim] ?? 0, each.size[dim] - 1)]));
  app.extras.replaceChildren(...further.map((dim) => extraMenu(app, dim)));
  app.sliders.step.input.disabled = !("inner_step" in header.coords);
  moved(app);
}

/** The menu of the position along a further dimension of the quantity, such as the layer. */
function extraMenu(app, dim) {
  const labels = app.header.coords[dim];
  const box = select(labels.map((_, index) => index), app.state.extra[dim], (value) => {
    app.state.extra[dim] = Number(value);
    changed(app);
  });
  labels.forEach((label, index) => (box.options[index].textContent = typeof label === "number" ? number(label) : label));
  return labelled(dim.replaceAll("_", " "), box);
}

/** Show the point at which the sliders are now. */
function moved(app) {
  app.sliders.checkpoint.show();
  app.sliders.step.show();
  for (const view of Object.values(app.views)) view.code.hidden = true;
  writeTable(app);
  drawAll(app);
}

/** The present point in words; `each` is the variable whose dimensions decide what belongs to it. */
function pointText(app, each = variable(app)) {
  const { header, state } = app;
  const words = [`meta-iteration ${header.coords.checkpoint[state.checkpoint]}`];
  if (each.dims.includes("inner_step")) words.push(`inner step ${header.coords.inner_step[state.step]}`);
  words.push(state.seed === null ? "mean over seeds" : `seed ${state.seed}`);
  if (state.seed !== null && each.taskDim) words.push(state.task === null ? "mean over tasks" : `task ${state.task}`);
  for (const [dim, index] of Object.entries(state.extra)) words.push(`${dim} ${header.coords[dim][index]}`);
  return words.join(", ");
}

/** Write the table of the values at the present point, and say them to a screen reader. */
function writeTable(app) {
  const heads = ["Learner", "Value", "Error", "Of"].map((text) => html("th", { scope: "col" }, text));
  const said = [];
  let source = "";
  const rows = shownLearners(app).map((learner) => {
    const point = summary(app, app.state.quantity, learner.index, place(app));
    const isKnown = Number.isFinite(point.mean);
    if (isKnown) source = `; error: ${point.source}`;
    const cells = isKnown ? [number(point.mean), errorText(point), point.count] : ["not measured", "", ""];
    said.push(`${learner.label}: ${cells[0]} ${cells[1]}`.trim());
    const row = html("tr", { "data-learner": learner.name }, html("th", { scope: "row" }, learner.label));
    row.append(...cells.map((cell) => html("td", {}, cell)));
    return row;
  });
  const caption = html("caption", {}, html("b", {}, app.state.quantity), ` at ${pointText(app)}${source}`);
  app.table.replaceChildren(caption, html("thead", {}, html("tr", {}, ...heads)), html("tbody", {}, ...rows));
  app.live.textContent = `${app.state.quantity} at ${pointText(app)}. ${said.join("; ")}.`;
}

/** A band as text: one number behind ± where it is symmetric, otherwise both of its ends. */
function errorText({ mean, low, high }) {
  if (!Number.isFinite(low) || !Number.isFinite(high)) return "";
  const [down, up] = [mean - low, high - mean];
  if (up === 0 && down === 0) return "";
  return Math.abs(up - down) <= 1e-3 * Math.max(up, down) ? `± ${number(up, 2)}` : `${number(low)} to ${number(high)}`;
}

// ---- drawing

/** True on a dark page: by the theme of JupyterLab or, elsewhere, by the setting of the browser. */
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
    return best && far(best) < 30 ? best : null; // pixels, about the width of a finger
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

/** Show the code of a view below its picture, and copy it. */
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
  setTimeout(() => URL.revokeObjectURL(link.href), 10000); // milliseconds; the browser reads it after the click
}

/** Send a message to the kernel, which `_receive` of explorer.py answers. */
function send(app, message) {
  note(app, "The kernel is at work …");
  app.model.send(message);
}

/** Take an answer of the kernel: a PDF as a file, and what is to be told. */
function receive(app, message, buffers) {
  if (message.kind === "pdf") download(buffers[0], "application/pdf", message.name);
  note(app, message.text);
}

function note(app, text) {
  app.note.textContent = text;
  app.live.textContent = text;
}
