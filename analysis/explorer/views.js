// The five views of the explorer. Each function draws a picture of the present choice: it returns the picture, the marks
// that answer to the pointer (hits) and the words for a screen reader, or what to write where there is nothing to draw.

const DASHES = { "-": "", "--": "6 3", "-.": "7 3 2 3", ":": "2 3" }; // matplotlib's line styles as dashes of SVG

/**
 * Lines of means with bands over the dimension `dim`, with a dotted line at the present position of its slider. `x` is the
 * scale of the dimension, and `app.state[key]` the position of the slider.
 */
function drawLines(app, width, dark, dim, x, key) {
  const learners = shownLearners(app);
  const curves = learners.map((learner) => curve(app, learner, dim));
  const y = app.state.fit ? scaleOfPoints(curves.flat(), app.state.log) : valueScale(app, learners);
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

/** The lines over meta-training. */
function drawTraining(app, width, dark) {
  return drawLines(app, width, dark, "checkpoint", trainingScale(app.header.coords.checkpoint), "checkpoint");
}

/** The lines along the inner loop. */
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
  const points = learners.map((learner) =>
    seeds.flatMap((seed) => taskValues(app, each, learner.index, seed, place(app), false).map((value, task) => ({ value, seed, task }))),
  );
  const scale = scaleOf(finite(points.flat().map((point) => point.value)), app.state.log);
  if (!scale) return { missing: "Nothing is measured at this point yet." };
  const area = chart({ width, height: rowsHeight(learners), x: scale, y: null, xlabel: app.state.quantity, dark, left: 12, rows: learners.length });
  const hits = [];
  learners.forEach((learner, row) => {
    const color = visible(learner.color, dark);
    rowLabel(area, learner, row, color);
    points[row].forEach(({ value, seed, task }) => {
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
  const told = learners.map((learner, row) => `${learner.label} ${plural(finite(points[row].map((point) => point.value)).length, "task")}`);
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
  // Besides the marks, the axis holds the part where some density is above a thousandth of the highest peak.
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
      const opacity = marks[row].length > 20 ? 0.35 : 1; // many marks overlap
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
  const marks = [];
  header.coords.seed.forEach((seed, s) => {
    if (state.seed !== null && seed !== state.seed) return;
    header.coords.eigen_index.forEach((_, i) => {
      const at = { ...where, eigen_index: i };
      const errors = residual ? taskValues(app, residual, learner.index, s, at, true) : [];
      taskValues(app, eigenvalue, learner.index, s, at, true).forEach((value, t) => {
        const task = eigenvalue.taskDim ? header.coords[eigenvalue.taskDim][t] : null;
        if (!Number.isFinite(value) || (task !== null && state.task !== null && task !== state.task)) return;
        const of = `seed ${seed}${task === null ? "" : `, task ${task}`}, number ${i} by magnitude`;
        marks.push({ value, error: errors[t], of });
      });
    });
  });
  return marks;
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
  // The colours end at the 95 % quantile: far from the start the loss grows so fast that all else would look alike.
  const [low, high] = [values[0], values[Math.floor(0.95 * (values.length - 1))]];
  const columns = Math.max(1, Math.min(learners.length, Math.floor(width / 150)));
  const size = Math.min(220, Math.floor(width / columns) - 10);
  const height = Math.ceil(learners.length / columns) * (size + 26) + 24;
  const picture = canvas(width, height);
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
        picture.append(svg("rect", { x: cx, y: cy, width: w + 0.5, height: h + 0.5, fill, "shape-rendering": "crispEdges" }));
        const text = [learner.label, `descent ${number(xs[x])}, random ${number(ys[y])}`, `support loss ${number(value)}`];
        hits.push({ x: cx + w / 2, y: cy + h / 2, text });
      }),
    );
    const [cx, cy] = [left + size / 2, top + size / 2];
    if (finite(maps[index].flat()).length) picture.append(svg("circle", { cx, cy, r: 3, fill: "#fff", stroke: "#000" }));
    else picture.append(text("not measured", { x: cx, y: cy, anchor: "middle", dark }));
  });
  const legend = `x: descent direction, y: random direction; support loss from ${number(low)} (dark) to ${number(high)} (light)`;
  wrap(legend, width).forEach((line, i) => picture.append(text(line, { x: 0, y: height - 16 + 13 * i, anchor: "start", dark })));
  return { picture, hits, text: `Support loss at meta-iteration ${app.header.coords.checkpoint[app.state.checkpoint]}, from ${number(low)} to ${number(high)}.` };
}

/** The height in pixels of a picture with a row for each learner. */
const rowsHeight = (learners) => Math.max(140, 70 + 52 * learners.length);

/** The value of a point with its band, in words. */
function valueText(app, point) {
  return `${app.state.quantity} ${number(point.mean)} ${errorText(point)}`.trim();
}

/** The ends of a curve in words, for a screen reader. */
function firstAndLast(points) {
  const known = points.filter((point) => Number.isFinite(point.mean));
  return known.length ? `${number(known[0].mean)} to ${number(known.at(-1).mean)}` : "nothing measured";
}

/** The scale of the values, the same at all positions of both sliders, so that moving one does not move the axis. */
function valueScale(app, learners) {
  const key = "scale"; // it is kept among the curves, because every change of the choice clears both
  if (!app.curves.has(key)) {
    const steps = variable(app).dims.includes("inner_step") ? app.header.coords.inner_step.length : 1;
    const points = [];
    for (const learner of learners) {
      for (let c = 0; c < app.header.coords.checkpoint.length; c++) {
        for (let s = 0; s < steps; s++) points.push(summary(app, app.state.quantity, learner.index, place(app, { checkpoint: c, inner_step: s })));
      }
    }
    app.curves.set(key, scaleOfPoints(points, app.state.log));
  }
  return app.curves.get(key);
}

/** The scale of means with their bands. The end of a band that lies too far outside is left out, because the means would otherwise be squeezed together. */
function scaleOfPoints(points, log) {
  const means = finite(points.map((point) => point.mean));
  const [low, high] = [Math.min(...means), Math.max(...means)];
  const reach = 0.5 * (high - low);
  const ends = finite(points.flatMap((point) => [point.low, point.high]));
  return scaleOf([...means, ...ends.filter((end) => end >= low - reach && end <= high + reach)], log);
}
