// What the explorer's views show: the values, means and bands of a study at a place, from the header and the float32
// numbers that export.py writes. The functions of chart.js come before this text in the same module.

const TASK_DIMS = ["task", "evaluation_task"];

/** The description of the chosen quantity. */
function variable(app) {
  return app.variables[app.state.quantity];
}

/** The positions that are chosen along all dimensions but learner, seed and task, with `changes` in place of some. */
function place(app, changes = {}) {
  return { checkpoint: app.state.checkpoint, inner_step: app.state.step, ...app.state.extra, ...changes };
}

/**
 * The values of all tasks (or the single value) of the variable `each` for one learner and seed, at the positions `where`.
 * `scaled` multiplies them by the inner step size alpha if the study's spectra are those of alpha times the Hessian.
 */
function taskValues(app, each, learner, seed, where, scaled) {
  const alpha = scaled && app.header.step_size ? app.header.step_size[learner][seed] ?? NaN : 1;
  let start = each.offset + learner * each.strides.learner + seed * each.strides.seed;
  // The first three dimensions are learner, seed and checkpoint (LEADING_DIMS in export.py).
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
    // The same rule as in the figures: of few seeds their range, of more a 95 % Student t interval.
    if (seedsWithValues(app, name) <= app.header.max_seeds_shown) {
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
  // An error without a task dimension is one number for all tasks.
  const error = errors.length === values.length ? errors[task] : errors[0] ?? 0;
  const source = each.error ? app.variables[each.error].long_name : "no error is measured";
  return { mean: middle, low: middle - error, high: middle + error, count: each.taskDim ? "1 task" : "1 seed", source };
}

/** The number of seeds that have any value of a variable. */
function seedsWithValues(app, name) {
  const each = app.variables[name];
  if (each.numSeeds === undefined) {
    const { seed, learner } = each.size;
    const length = each.strides.seed; // how many numbers a learner has for each seed, which follow each other
    const has = (s) =>
      [...Array(learner).keys()].some((l) => {
        const start = each.offset + l * each.strides.learner + s * length;
        return app.numbers.subarray(start, start + length).some(Number.isFinite);
      });
    each.numSeeds = [...Array(seed).keys()].filter(has).length;
  }
  return each.numSeeds;
}

/** The shown learners with their positions along the dimension. */
function shownLearners(app) {
  const all = app.header.learners.map((each, index) => ({ ...each, index }));
  return all.filter((each) => app.state.learners.includes(each.name));
}

/** The summaries of the chosen quantity at all positions along a dimension, kept until the choice changes. */
function curve(app, learner, dim) {
  const key = JSON.stringify([learner.index, dim, place(app, { [dim]: 0 })]);
  if (!app.curves.has(key)) {
    const positions = app.header.coords[dim].map((_, i) => i);
    app.curves.set(key, positions.map((i) => summary(app, app.state.quantity, learner.index, place(app, { [dim]: i }))));
  }
  return app.curves.get(key);
}
