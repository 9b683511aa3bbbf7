// Live metrics: figures, charts and a Stop button, drawn from what Python worked out. All text enters through textContent.

const HEARD_MS = 1500; // the kernel answers later than this: it is busy with the cell, so interrupt it where we can
const HINT_MS = 6000; // and later than this: say what the reader can do
const QUIET_S = 10; // no news for so long: say for how long, so that a slow step is told from a dead one
const WIDE = 300, TALL = 130, LEFT = 58, RIGHT = 8, FOOT = 18; // as in curves.py

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text nodes, never markup
  return node;
}

function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Index of the point nearest to `x`; points are in the order of their x. */
export function nearest(points, x) {
  return points.reduce((best, [at], index) => (Math.abs(at - x) < Math.abs(points[best][0] - x) ? index : best), 0);
}

/** One chart. It stays while its lines change, so that the pointer and the focus keep their place. */
class Picture {
  constructor(off) {
    this.x = null; // where the reader points, null for nowhere
    this.head = make("div", { class: "lm-names" });
    this.svg = draw("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, "aria-hidden": "true" });
    this.box = make("div", { class: "lm-plot", tabindex: "0", role: "img" }, this.svg);
    this.told = make("div", { class: "lm-told" });
    this.node = make("div", { class: "lm-chart" }, this.head, this.box, this.told);
    const on = (name, handle) => this.box.addEventListener(name, handle, { signal: off.signal });
    on("pointermove", (event) => this.point(event));
    on("pointerleave", () => this.at(null));
    on("blur", () => this.at(null));
    on("keydown", (event) => this.key(event));
  }

  show(chart) {
    this.chart = chart;
    const names = chart.series.map(({ name, dashed }, index) => make("span", { class: `lm-name lm-of${index}${dashed ? " lm-dashed" : ""}` }, name));
    if (chart.best) names.push(make("span", { class: "lm-name lm-ring" }, "best"));
    if (chart.name.endsWith("logarithmic")) names.push(make("span", { class: "lm-soft" }, "logarithmic"));
    this.head.replaceChildren(...names);
    this.cross = draw("g", { class: "lm-cross" });
    const grid = chart.ticks.flatMap(([y, text]) => [
      draw("path", { class: "lm-grid", d: `M${LEFT} ${y}H${WIDE - RIGHT}` }), draw("text", { class: "lm-tick", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, text),
    ]);
    const foot = [["start", LEFT], ["end", WIDE - RIGHT]].map(([anchor, x], index) =>
      draw("text", { class: "lm-tick", x, y: TALL - 3, "text-anchor": anchor }, index ? `step ${chart.steps[1]}` : chart.steps[0]));
    const lines = chart.series.map(({ path, dashed }, index) => draw("path", { class: `lm-line lm-of${index}${dashed ? " lm-dashed" : ""}`, d: path }));
    const best = chart.best ? [draw("circle", { class: "lm-best", cx: chart.best[0], cy: chart.best[1], r: 4.5 })] : [];
    this.svg.replaceChildren(...grid, ...foot, ...lines, ...best, this.cross);
    this.at(this.x);
  }

  point(event) {
    const box = this.box.getBoundingClientRect();
    this.at(((event.clientX - box.left) / box.width) * WIDE);
  }

  key(event) {
    const points = this.chart.series[0].points, here = this.x === null ? points.length - 1 : nearest(points, this.x);
    const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: points.length - 1 }[event.key];
    if (next === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    this.at(points[Math.min(Math.max(next, 0), points.length - 1)][0]);
    event.preventDefault();
    event.stopPropagation();
  }

  at(x) {
    this.x = x;
    const read = this.chart.series.map(({ name, points, steps, told }) => {
      const index = x === null ? points.length - 1 : nearest(points, x);
      return { text: `${name} ${told[index]}`, step: steps[index], point: points[index] };
    });
    const apart = read.some(({ step }) => step !== read[0].step);
    const all = read.map(({ text, step }) => (apart ? `${text} at step ${step}` : text)).join(", ");
    this.told.textContent = apart ? all : `step ${read[0].step}: ${all}`;
    this.box.setAttribute("aria-label", `${this.told.textContent}; arrow keys: earlier and later points`);
    const marks = x === null ? [] : read.map(({ point }, index) => draw("circle", { class: `lm-dot lm-of${index}`, cx: point[0], cy: point[1], r: 3.5 }));
    const line = x === null ? [] : [draw("path", { d: `M${read[0].point[0]} 8V${TALL - FOOT}` })];
    this.cross.replaceChildren(...line, ...marks);
  }
}

class View {
  constructor(model, el) {
    this.model = model;
    this.off = new AbortController();
    this.pictures = [];
    this.news = performance.now();
    this.bar = make("div", { class: "lm-bar" });
    this.progress = make("div", { class: "lm-progress", role: "progressbar", "aria-label": "Steps", "aria-valuemin": "0" }, this.bar);
    this.state = make("span", { class: "lm-state", role: "status" });
    this.count = make("span", { class: "lm-count" });
    this.button = make("button", { type: "button", class: "lm-stop" }, "Stop");
    this.row = make("div", { class: "lm-figures" });
    this.plots = make("div", { class: "lm-charts" });
    this.note = make("div", { class: "lm-note", role: "status" });
    const title = make("span", { class: "lm-title" });
    title.textContent = model.get("title") || "Training";
    this.root = make(
      "section", { class: "live-metrics", "aria-label": "Training", "data-lm-suppress-shortcuts": "true" },
      make("div", { class: "lm-head" }, title, this.state, this.count, this.button), this.progress, this.row, this.plots, this.note,
    );
    this.button.addEventListener("click", () => this.stop(), { signal: this.off.signal });
    this.heard = [["figures", () => this.numbers()], ["charts", () => this.draw()], ["phase", () => this.turn()], ["state", () => this.turn()], ["step", () => this.steps()]];
    for (const [name, handle] of this.heard) model.on(`change:${name}`, handle);
    this.watch = setInterval(() => this.quiet(), 1000);
    this.numbers();
    this.draw();
    this.turn();
    this.steps();
    el.append(this.root);
  }

  going() {
    return ["waiting", "training"].includes(this.model.get("phase"));
  }

  numbers() {
    this.news = performance.now();
    this.row.replaceChildren(...this.model.get("figures").map(({ name, value, note, bad }) =>
      make(
        "div", { class: `lm-figure${bad ? " lm-bad" : ""}` },
        make("div", { class: "lm-soft" }, name), make("div", { class: "lm-value" }, value), make("div", { class: "lm-soft" }, note),
      )));
  }

  draw() {
    const charts = this.model.get("charts");
    while (this.pictures.length < charts.length) this.pictures.push(new Picture(this.off));
    this.pictures.length = charts.length;
    charts.forEach((chart, index) => this.pictures[index].show(chart));
    const nodes = this.pictures.map(({ node }) => node);
    if (nodes.length !== this.plots.children.length) this.plots.replaceChildren(...nodes); // else the focus would be lost
  }

  steps() {
    const step = this.model.get("step"), steps = this.model.get("steps");
    this.progress.hidden = !steps;
    this.progress.setAttribute("aria-valuemax", steps);
    this.progress.setAttribute("aria-valuenow", step);
    this.bar.style.width = `${steps ? Math.min(100, (100 * step) / steps) : 0}%`;
    this.count.textContent = steps ? `step ${step} of ${steps} · ${Math.floor((100 * step) / steps)} %` : step ? `step ${step}` : "";
  }

  turn() {
    const phase = this.model.get("phase");
    this.root.dataset.phase = phase;
    this.state.textContent = this.model.get("state");
    this.button.hidden = !this.going() && phase !== "stopping";
    if (phase === "waiting" && !this.asked) this.ready();
    if (this.going()) return;
    clearTimeout(this.later);
    this.button.disabled = true;
    this.button.textContent = "Stopping …";
    this.asked = phase === "stopping";
    this.tell("");
  }

  ready() {
    this.button.disabled = false;
    this.button.textContent = "Stop";
  }

  stop() {
    this.asked = true;
    this.button.disabled = true;
    this.button.textContent = "Stopping …";
    this.tell("The trainer stops after this step and leaves a checkpoint.");
    this.model.send({ kind: "stop" });
    this.later = setTimeout(() => this.interrupt(), HEARD_MS);
  }

  interrupt() {
    const kernel = this.model.widget_manager?.kernel; // JupyterLab and Notebook 7 have it
    this.later = setTimeout(() => this.insist(), HINT_MS - HEARD_MS);
    if (this.model.get("can_interrupt") && kernel?.interrupt) Promise.resolve(kernel.interrupt()).catch(() => this.insist());
  }

  insist() {
    if (this.going()) this.tell("The kernel has not heard it yet. Interrupt the cell (■ in the notebook): the run stops after this step and leaves a checkpoint.");
  }

  quiet() {
    const silent = Math.floor((performance.now() - this.news) / 1000);
    if (this.model.get("phase") !== "training" || this.asked) return;
    this.tell(silent >= QUIET_S ? `last news ${silent} s ago` : "");
  }

  tell(text) {
    if (this.note.textContent !== text) this.note.textContent = text;
  }

  remove() {
    this.off.abort();
    clearTimeout(this.later);
    clearInterval(this.watch);
    for (const [name, handle] of this.heard) this.model.off(`change:${name}`, handle);
    this.root.remove();
  }
}

export default {
  render({ model, el }) {
    const view = new View(model, el);
    return () => view.remove();
  },
};
