// The Python code of the explorer's views. A static page has no Python, so this file fills the templates of code.py in the
// same way as code.py does; a test compares the two for every view.

const DESCRIBED = { checkpoint: "meta-iteration", inner_step: "inner step" };

/** The choice with names and values in place of positions, as Python takes it. */
function pythonState(app) {
  const { header, state } = app;
  const { quantity, learners, seed, task, extra, log } = state;
  const inner_step = (header.coords.inner_step ?? [0])[state.step];
  return { quantity, learners, seed, task, checkpoint: header.coords.checkpoint[state.checkpoint], inner_step, extra, log };
}

/** The Python code that draws a view of the present choice. */
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

/** The kind of mean of a variable, as `kind_of_mean` of code.py. */
function kindOfMean(app, name) {
  if (app.state.seed === null) return "seeds";
  return app.variables[name].taskDim && app.state.task === null ? "tasks" : "point";
}

/** A template with its placeholders replaced by texts, as `fill` of code.py. */
function fill(template, texts) {
  const lines = template.split("\n").filter((line) => {
    const only = line.match(/^\{\{(\w+)\}\}$/);
    return !only || texts[only[1]];
  });
  return lines.join("\n").replace(/\{\{(\w+)\}\}/g, (_, name) => texts[name]);
}

/** The texts for the placeholders, for one variable of a view, as `_fields` of code.py. */
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
