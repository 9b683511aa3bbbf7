// Error board: a table of utterances with what was said over what was heard; sort, filter, hear a word, see what is
// confused. The report stays in Python: pages, sounds and grids come by custom messages. All text enters by textContent.

const HINT_MS = 2500; // the kernel answers later than this: say why it is quiet
const TYPED_MS = 250; // a pause in typing that long starts the search
const QUIET = "No answer yet: it comes when the kernel is free. In a saved notebook, run the cell again.";
const KINDS = [["substitute", "≠", "substituted"], ["delete", "−", "deleted"], ["insert", "+", "inserted"]];
const SORTS = [["name", "utterance"], ["speaker", "speaker"], ["wer", "WER"], ["errors", "errors"], ["confidence", "confidence"], ["seconds", "seconds"]];
const UP_FIRST = ["name", "speaker", "confidence"]; // a first click sorts these from the low end
const TABS = [["rows", "Utterances"], ["word", "Confused words"], ["char", "Confused characters"]];

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text nodes, never markup
  return node;
}

const makeButton = (attributes, ...children) => make("button", { type: "button", ...attributes }, ...children);

const grouped = (count) => count.toLocaleString("en"); // 12,345

function makeBar(pixels) {
  const node = make("span", { class: "eb-bar", "aria-hidden": "true" });
  node.style.width = `${pixels}px`;
  return node;
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** What a column says aloud: `substituted: fourteen, heard forty`. */
export function told([kind, said, heard]) {
  if (kind === "equal") return said;
  if (kind === "delete") return `deleted: ${said}`;
  return kind === "insert" ? `inserted: ${heard}` : `substituted: ${said}, heard ${heard}`;
}

/** A label of the grid: a space can be seen, a combining mark has something to stand on, nothing is ∅. */
export function shown(label) {
  return label === "" ? "∅" : /^\p{M}/u.test(label) ? `◌${label}` : label;
}

/** The nodes of a grid of confusions: the most frequent ones, the matrix, and how to read it. */
function confused({ unit, labels, counts, top, left_out }) {
  if (!top.length) return [make("div", { class: "eb-none" }, `No ${unit === "word" ? "word" : "character"} was confused.`)];
  const most = Math.max(1, ...top.map(([, , count]) => count)), what = unit === "word" ? "words" : "characters";
  const pick = (said, heard, ...inside) =>
    makeButton({ class: "eb-pick", "aria-label": `${shown(said)} heard as ${shown(heard)}: show these utterances`, "data-said": said, "data-heard": heard }, ...inside);
  const name = (label) => make("bdi", {}, shown(label)), soft = (text) => make("span", { class: "eb-soft" }, text);
  const list = make("ol", { class: "eb-top", "aria-label": `Most confused ${what}` }, ...top.map(([said, heard, count]) =>
    make("li", {}, pick(said, heard, name(said), soft(" → "), name(heard)), makeBar((70 * count) / most), soft(`${count}`))));
  const cell = (said, heard, count, right) => {
    const td = make("td", { class: right ? "eb-right" : count ? "eb-wrong" : "" }, ...(count ? [right ? `${count}` : pick(said, heard, `${count}`)] : []));
    if (count && !right) td.style.setProperty("--share", `${12 + (48 * count) / most}%`);
    return td;
  };
  const head = make("tr", {}, make("th", { class: "eb-corner" }, "said ↓ heard →"), ...labels.map((label) => make("th", { scope: "col" }, name(label))));
  const body = labels.map((said, i) =>
    make("tr", {}, make("th", { scope: "row" }, name(said)), ...labels.map((heard, j) => cell(said, heard, counts[i][j], said === heard && i > 0))));
  const table = make("table", { class: "eb-matrix", "aria-label": `Confusion matrix of ${what}` }, make("thead", {}, head), make("tbody", {}, ...body));
  const rest = left_out ? ` ${grouped(left_out)} rarer errors have no room here.` : "";
  const note = `∅ is nothing: a row of what was inserted, a column of what was deleted. Click a number to see its utterances.${rest}`;
  return [list, make("div", { class: "eb-scroll" }, table), make("p", { class: "eb-soft" }, note)];
}

/** What a question or an answer is about: a later question about the same takes the place of the one before. */
const about = ({ kind, of, row }) => ((of ?? kind) === "columns" ? `columns ${row}` : of ?? kind);

/** The arrow keys of a row of buttons: one Tab stop, focus moves within it. `back` is -1 where text runs leftwards. */
function rove(event, buttons, forward = 1) {
  const from = buttons.indexOf(event.target.closest("button"));
  const step = { ArrowRight: forward, ArrowLeft: -forward, Home: -Infinity, End: Infinity }[event.key];
  if (from < 0 || step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  const next = Math.min(Math.max(from + step, 0), buttons.length - 1);
  buttons.forEach((button, index) => button.setAttribute("tabindex", index === next ? "0" : "-1"));
  buttons[next].focus();
  event.preventDefault();
  event.stopPropagation();
}

class View {
  constructor(model, el) {
    this.model = model;
    this.id = Math.random().toString(36).slice(2); // answers to other views of the model are not ours
    this.asked = new Map(); // what for → the number of the last question
    this.count = 0;
    this.query = { sort: "errors", descending: true, text: "", kinds: [], below: null, pair: null, unit: "word" };
    this.first = 0;
    this.grids = {};
    this.audio = new Audio();
    this.off = new AbortController();
    this.root = make(
      "section", { class: "error-board", "aria-label": "Error board", "data-lm-suppress-shortcuts": "true" },
      this.head(), this.tabs(), this.panel(), this.confusions(), this.foot(),
    );
    this.listen();
    this.fill(model.get("rows"), model.get("total"));
    this.tab("rows");
    el.append(this.root);
  }

  head() {
    const total = this.model.get("total"), title = this.model.get("title");
    const figures = this.model.get("figures").map(({ name, value, told: title }) => make("span", { title }, make("b", {}, name), ` ${value}`));
    this.save = makeButton({ class: "eb-save" }, "Save as CSV");
    return make(
      "div", { class: "eb-head" }, make("span", { class: "eb-title" }, title || "Error board"),
      make("span", { class: "eb-about" }, make("span", {}, `${grouped(total)} ${total === 1 ? "utterance" : "utterances"}`), ...figures), this.save,
    );
  }

  tabs() {
    this.chips = TABS.map(([name, text]) =>
      makeButton({ role: "tab", class: "eb-tab", "data-tab": name, id: `${this.id}-${name}`, "aria-controls": `${this.id}-of-${name}` }, text));
    return make("div", { class: "eb-tabs", role: "tablist", "aria-label": "What to show" }, ...this.chips);
  }

  panel() {
    this.rows = make("tbody");
    this.heads = SORTS.filter(([name]) => ["name", "wer", "errors"].includes(name) || this.model.get("known").includes(name));
    this.sorts = this.heads.map(([name, text]) => makeButton({ class: "eb-sort", "data-sort": name }, text));
    const head = make("tr", {}, ...this.sorts.map((button, index) => make("th", { scope: "col", class: index && this.heads[index][0] !== "speaker" ? "eb-n" : "" }, button)));
    this.table = make("table", { "aria-label": "Utterances" }, make("thead", {}, head), this.rows);
    this.pager = make("div", { class: "eb-pager" });
    this.list = make("div", { role: "tabpanel", id: `${this.id}-of-rows`, "aria-labelledby": `${this.id}-rows` }, this.filters(), make("div", { class: "eb-scroll" }, this.table), this.pager);
    return this.list;
  }

  filters() {
    this.search = make("input", { type: "search", class: "eb-search", placeholder: "Find a word, a file, a speaker", "aria-label": "Find a word, a file, a speaker" });
    this.kinds = KINDS.map(([kind, sign, text], index) => {
      const count = this.model.get("kinds")[index];
      const told = { "aria-pressed": "false", "data-kind": kind, title: `only utterances with a word ${text}` };
      return makeButton({ class: `eb-kind eb-key-${kind}`, ...told }, make("span", { "aria-hidden": "true" }, sign), ` ${text} ${grouped(count)}`);
    });
    this.slider = make("input", { type: "range", min: 0, max: 1, step: 0.01, value: 1, class: "eb-slider", "aria-label": "Only utterances with a confidence below" });
    this.below = make("output", { class: "eb-below" });
    const sure = this.model.get("known").includes("confidence") ? [make("label", { class: "eb-sure" }, "confidence below", this.slider, this.below)] : [];
    this.pair = makeButton({ class: "eb-pair" });
    return make("div", { class: "eb-filters", role: "group", "aria-label": "Filters" }, this.search, ...this.kinds, ...sure, this.pair);
  }

  confusions() {
    this.grid = make("div", { class: "eb-grid", role: "tabpanel" });
    return this.grid;
  }

  foot() {
    this.note = make("span", { class: "eb-note", role: "status" });
    const legend = KINDS.map(([kind, sign, text]) => make("span", { class: "eb-legend" }, `${sign} `, make("span", { class: `eb-word-${kind}` }, text)));
    const keys = this.model.get("known").includes("audio") ? [make("span", { class: "eb-keys" }, "click or Enter: hear a word · ← →: words · Esc: silence")] : [];
    return make("div", { class: "eb-foot" }, ...legend, ...keys, this.note);
  }

  listen() {
    const on = (node, name, handle) => node.addEventListener(name, handle, { signal: this.off.signal });
    this.chips.forEach((chip) => on(chip, "click", () => this.tab(chip.dataset.tab)));
    on(this.chips[0].parentNode, "keydown", (event) => { rove(event, this.chips); });
    this.sorts.forEach((button) => on(button, "click", () => this.sort(button.dataset.sort)));
    this.kinds.forEach((button) => on(button, "click", () => this.kind(button)));
    on(this.search, "input", () => this.typed({ text: this.search.value }));
    on(this.slider, "input", () => { this.slid(); this.typed({ below: Number(this.slider.value) < 1 ? Number(this.slider.value) : null }); });
    on(this.pair, "click", () => { this.ask({ pair: null }); this.search.focus(); });
    on(this.rows, "click", (event) => this.clicked(event.target.closest("button")));
    on(this.rows, "keydown", (event) => this.arrow(event));
    on(this.pager, "click", (event) => { const to = event.target.closest("button")?.dataset.first; if (to !== undefined) this.ask({}, Number(to)); });
    on(this.grid, "click", (event) => this.picked(event.target.closest("button")));
    on(this.save, "click", () => this.send({ kind: "csv" }));
    on(this.root, "keydown", (event) => { if (event.key === "Escape") this.hush(); });
    on(this.audio, "ended", () => this.hush());
    on(this.audio, "error", () => this.audio.getAttribute("src") && this.tell("This browser cannot play the audio.", true));
    this.receive = (content, buffers) => this.arrived(content, buffers);
    this.model.on("msg:custom", this.receive);
    this.slid();
  }

  slid() {
    const value = Number(this.slider.value);
    this.below.textContent = value < 1 ? value.toFixed(2) : "any";
  }

  tab(name) {
    for (const chip of this.chips) {
      chip.setAttribute("aria-selected", chip.dataset.tab === name ? "true" : "false");
      chip.setAttribute("tabindex", chip.dataset.tab === name ? "0" : "-1");
    }
    this.list.hidden = name !== "rows";
    this.grid.hidden = name === "rows";
    if (name === "rows") return;
    this.grid.setAttribute("aria-labelledby", `${this.id}-${name}`);
    this.grid.id = `${this.id}-of-${name}`;
    this.unit = name;
    if (this.grids[name]) return this.lay(this.grids[name]);
    this.grid.replaceChildren(make("div", { class: "eb-none" }, "Counting …"));
    this.send({ kind: "grid", unit: name });
  }

  sort(name) {
    const descending = this.query.sort === name ? !this.query.descending : !UP_FIRST.includes(name);
    this.ask({ sort: name, descending });
  }

  kind(button) {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on ? "true" : "false");
    this.ask({ kinds: this.kinds.filter((each) => each.getAttribute("aria-pressed") === "true").map((each) => each.dataset.kind) });
  }

  typed(change) {
    Object.assign(this.query, change);
    clearTimeout(this.pause);
    this.pause = setTimeout(() => this.ask({}), TYPED_MS);
  }

  ask(change, first = 0) {
    clearTimeout(this.pause);
    Object.assign(this.query, change);
    this.wanted = first;
    this.table.setAttribute("aria-busy", "true");
    this.send({ kind: "rows", query: { ...this.query }, first });
  }

  send(message) {
    const seq = `${this.id}-${(this.count += 1)}`;
    this.asked.set(about(message), seq);
    clearTimeout(this.hint);
    this.hint = setTimeout(() => this.tell(QUIET), HINT_MS);
    this.model.send({ ...message, seq });
  }

  arrived(content, buffers) {
    const topic = content && about(content), what = content?.of ?? content?.kind;
    if (!topic || this.asked.get(topic) !== content.seq) return; // another view's, or a later question has followed
    this.asked.delete(topic);
    if (!this.asked.size) {
      clearTimeout(this.hint);
      if (this.note.textContent === QUIET) this.tell("");
    }
    if (content.kind === "failed") return this.failed(what, content.reason);
    if (what === "rows") this.paged(content);
    if (what === "columns") this.lengthen(content);
    if (what === "audio") this.play(content, buffers[0]);
    if (what === "grid") this.lay((this.grids[content.unit] = content));
    if (what === "csv") this.download(content, buffers[0]);
  }

  failed(what, reason) {
    this.table.removeAttribute("aria-busy");
    if (what === "audio") this.hush();
    this.tell(reason, true);
  }

  paged({ rows, total }) {
    this.table.removeAttribute("aria-busy");
    this.first = this.wanted;
    const moved = this.pager.contains(document.activeElement) || this.pager.contains(this.root.getRootNode().activeElement);
    this.fill(rows, total);
    if (moved) (this.pager.querySelector("button:not(:disabled)") ?? this.search).focus();
  }

  fill(rows, total) {
    this.hush();
    this.rows.replaceChildren(...rows.flatMap((row) => this.row(row)));
    if (!rows.length) this.rows.append(make("tr", {}, make("td", { colspan: this.heads.length, class: "eb-none" }, "No utterance is like that.")));
    const { sort, descending, pair } = this.query, page = this.model.get("page"), last = Math.min(this.first + page, total);
    this.sorts.forEach((button) => {
      const here = button.dataset.sort === sort;
      button.closest("th").setAttribute("aria-sort", here ? (descending ? "descending" : "ascending") : "none");
    });
    this.pair.hidden = !pair;
    if (pair) this.pair.replaceChildren(make("bdi", {}, shown(pair[0])), " heard as ", make("bdi", {}, shown(pair[1])), " ✕");
    this.pair.setAttribute("aria-label", pair ? `no longer only ${shown(pair[0])} heard as ${shown(pair[1])}` : "");
    const all = this.model.get("total"), of = total < all ? ` of the ${grouped(total)} that match, ${grouped(all)} in all` : ` of ${grouped(all)}`;
    const turn = (text, to, can) => Object.assign(makeButton({ "data-first": to }, text), { disabled: !can });
    this.pager.replaceChildren(
      make("span", { role: "status" }, total ? `${this.first + 1}–${last}${of}` : `none of ${grouped(all)}`),
      turn("‹ before", Math.max(0, this.first - page), this.first > 0), turn("next ›", this.first + page, last < total),
    );
  }

  row(row) {
    const cells = this.heads.map(([name], index) => {
      if (!index) return this.name(row);
      const text = { speaker: row.speaker, errors: this.counts(row), confidence: row.confidence?.toFixed(2) ?? "–", seconds: row.seconds ? row.seconds.toFixed(1) : "–" }[name];
      return make("td", { class: name === "speaker" ? "" : "eb-n" }, ...(name === "wer" ? [make("span", { class: "eb-room", "aria-hidden": "true" }, makeBar(Math.min(row.wer, 1) * 46)), percent(row.wer)] : [text]));
    });
    const diff = make("td", { colspan: this.heads.length }, this.diff(row));
    return [make("tr", { class: "eb-row" }, ...cells), make("tr", { class: "eb-diff-row" }, diff)];
  }

  name(row) {
    const play = makeButton({ class: "eb-play", "data-row": row.row, "aria-label": `Hear ${row.name}` }, "▶");
    return make("th", { scope: "row" }, ...(row.audio ? [play] : []), make("bdi", {}, row.name));
  }

  counts(row) {
    const parts = KINDS.flatMap(([, sign], index) => (row.kinds[index] ? [`${sign}${row.kinds[index]}`] : []));
    return `${row.errors} of ${row.words}${parts.length ? `  (${parts.join(" ")})` : ""}`;
  }

  diff(row) {
    const box = make("div", { class: "eb-diff", dir: row.dir, role: "group", "aria-label": `${row.name}: said over heard`, "data-row": row.row });
    if (row.language) box.setAttribute("lang", row.language);
    box.append(make("span", { class: "eb-col eb-lines", "aria-hidden": "true" }, make("span", {}, "said"), make("span", {}, "heard")));
    this.extend(box, row.columns, 0, row.length);
    if (!row.length) box.append(make("span", { class: "eb-none" }, "(nothing said, nothing heard)"));
    return box;
  }

  extend(box, columns, first, length) {
    columns.forEach((column, index) => {
      const [kind, said, heard, start] = column, sign = KINDS.find(([name]) => name === kind)?.[1] ?? "";
      const node = make(start === null ? "span" : "button", { class: `eb-col eb-${kind}` });
      if (kind !== "equal") node.append(make("span", { class: "eb-sign", "aria-hidden": "true" }, sign));
      node.append(make("bdi", { class: "eb-said" }, said || "·"), make("bdi", { class: "eb-heard" }, heard || "·"));
      node.setAttribute("aria-label", told(column));
      if (start === null) node.setAttribute("role", "img");
      else for (const [name, value] of [["type", "button"], ["data-column", first + index], ["tabindex", "-1"], ["title", `${told(column)}, at ${start.toFixed(2)} s`]]) node.setAttribute(name, value);
      box.append(node);
    });
    const left = length - first - columns.length;
    if (left > 0) box.append(makeButton({ class: "eb-more", "data-first": first + columns.length, "data-length": length }, `and ${grouped(left)} more`));
    if (!box.querySelector('[data-column][tabindex="0"]')) box.querySelector("[data-column]")?.setAttribute("tabindex", "0");
  }

  lengthen({ row, first, columns }) {
    const box = this.rows.querySelector(`.eb-diff[data-row="${row}"]`), more = box?.querySelector(`.eb-more[data-first="${first}"]`);
    if (!more) return;
    const focused = this.root.getRootNode().activeElement === more, length = Number(more.dataset.length);
    more.remove();
    this.extend(box, columns, first, length);
    if (focused) box.querySelector(`[data-column="${first}"]`)?.focus();
  }

  clicked(button) {
    if (!button) return;
    const row = Number(button.dataset.row ?? button.closest(".eb-diff").dataset.row);
    if (button.matches(".eb-more")) return this.send({ kind: "columns", row, first: Number(button.dataset.first) });
    const column = button.dataset.column === undefined ? null : Number(button.dataset.column), again = button === this.lit;
    this.hush();
    if (again && column === null) return; // the ▶ that plays is a ■
    this.light(button);
    this.model.set("selected", row);
    this.model.save_changes();
    this.send({ kind: "audio", row, column, opus: this.audio.canPlayType('audio/ogg; codecs="opus"') !== "" });
  }

  arrow(event) {
    const box = event.target.closest(".eb-diff");
    if (box) rove(event, [...box.querySelectorAll("[data-column]")], getComputedStyle(box).direction === "rtl" ? -1 : 1);
  }

  light(button) {
    this.lit = button;
    button.classList.add("eb-now");
    if (button.matches(".eb-play")) button.textContent = "■";
  }

  hush() {
    this.asked.delete("audio"); // an answer under way comes too late
    if (!this.asked.size) clearTimeout(this.hint);
    this.audio.pause();
    this.lit?.classList.remove("eb-now");
    if (this.lit?.matches(".eb-play")) this.lit.textContent = "▶";
    this.lit = null;
    this.tell("");
  }

  play({ mime, seconds, cut }, data) {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(new Blob([data], { type: mime }));
    this.audio.src = this.url;
    const what = this.lit?.getAttribute("aria-label") ?? "";
    this.tell(cut ? `playing the first ${seconds.toFixed(0)} s` : `playing ${what.replace(/^Hear /, "")}`);
    this.audio.play().catch((error) => {
      if (error.name !== "AbortError") this.failed("audio", `The browser did not play the audio: ${error.message}`); // Abort: another click
    });
  }

  lay(grid) {
    if (grid.unit === this.unit) this.grid.replaceChildren(...confused(grid));
  }

  picked(button) {
    if (!button) return;
    this.tab("rows");
    this.ask({ pair: [button.dataset.said, button.dataset.heard], unit: this.unit });
    this.chips[0].focus();
  }

  download({ name, mime }, data) {
    const url = URL.createObjectURL(new Blob([data], { type: mime }));
    make("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    this.tell(`saved as ${name}`);
  }

  tell(text, bad = false) {
    this.note.textContent = text;
    this.note.classList.toggle("eb-bad", bad);
  }

  remove() {
    this.off.abort();
    clearTimeout(this.hint);
    clearTimeout(this.pause);
    this.model.off("msg:custom", this.receive);
    this.audio.pause();
    this.audio.removeAttribute("src");
    if (this.url) URL.revokeObjectURL(this.url);
    this.root.remove();
  }
}

export default {
  render({ model, el }) {
    const view = new View(model, el);
    return () => view.remove();
  },
};
