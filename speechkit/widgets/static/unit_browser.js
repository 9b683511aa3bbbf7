// Units browser: a list of units; choose one to hear all its stretches in a row, a stretch to hear it again.
// Stretches and sound of a unit come in parts, by custom messages: the first when it is chosen, the next when that has
// been heard. So do units beyond the list. All text enters through textContent.

const HINT_MS = 2500; // the kernel answers later than this: say why it is quiet
const HINT = "click or Enter: hear all stretches · ↑ ↓: units";
const STEPS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text nodes, never markup
  return node;
}

/** Index of the stretch that plays at `seconds`; -1 in a gap. Stretches are in order. */
export function stretchAt(stretches, seconds) {
  return stretches.findIndex((stretch) => stretch.from_s <= seconds && seconds < stretch.to_s);
}

/** What to call a stretch aloud: what is said, in which word, and where. */
export function told(stretch) {
  const word = `${stretch.before}${stretch.said}${stretch.after}`;
  const said = stretch.said === null ? "stretch" : !stretch.said ? "pause" : word === stretch.said ? stretch.said : `${stretch.said} in ${word}`;
  return `${said}, clip ${stretch.clip}, ${stretch.start_s.toFixed(2)}–${stretch.end_s.toFixed(2)} s`;
}

/** The arrow keys of a list: focus moves from a button to one further on, and Tab reaches that one from then on. */
function rove(event, buttons) {
  const from = buttons.indexOf(event.target), step = STEPS[event.key];
  if (from < 0 || step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  const next = Math.min(Math.max(from + step, 0), buttons.length - 1);
  aim(buttons, next);
  buttons[next].focus();
  event.preventDefault();
  event.stopPropagation();
}

function aim(buttons, index) {
  buttons.forEach((button, at) => button.setAttribute("tabindex", at === index ? "0" : "-1"));
}

/** A button whose work is done; its focus goes on to what it brought. */
function retire(button, next) {
  const focused = button.getRootNode().activeElement === button;
  button.hidden = true;
  if (focused) next?.focus();
}

class View {
  constructor(model, el) {
    this.model = model;
    this.units = []; // those that are listed
    this.sounds = new Map(); // unit → its parts so far: { part, url, stretches, first: its first stretch's number }
    this.here = -1;
    this.chips = [];
    this.wanted = null; // [unit, part, stretch or -1 for all], while the sound is under way
    this.playing = null; // the part that is heard
    this.stop_s = null; // where a single stretch ends, null while all are played
    this.audio = new Audio();
    this.off = new AbortController();
    const title = model.get("title");
    this.root = make(
      "section", { class: "unit-browser", "aria-label": "Units browser", "data-lm-suppress-shortcuts": "true" },
      title ? make("div", { class: "ub-title" }, title) : "", make("div", { class: "ub-panes" }, this.list(), this.detail()), this.line(),
    );
    this.listen();
    el.append(this.root);
  }

  list() {
    this.buttons = [];
    this.rarer = make("button", { type: "button", class: "ub-more" });
    this.box = make("div", { class: "ub-list", role: "group", "aria-label": "Units, commonest first" }, this.rarer);
    this.enlist(this.model.get("units"));
    return this.box;
  }

  enlist(units) {
    const made = units.map((unit) => {
      const button = make(
        "button", { type: "button", class: "ub-unit", "aria-pressed": "false", tabindex: "-1" },
        make("span", { class: "ub-name" }, unit.name), make("span", { class: "ub-said" }, unit.said), make("span", { class: "ub-count" }, `${unit.count}×`),
      );
      button.setAttribute("aria-label", `unit ${unit.name}, ${unit.count} stretches${unit.said ? `, said: ${unit.said}` : ""}`);
      return button;
    });
    if (!this.buttons.length) made[0]?.setAttribute("tabindex", "0");
    this.units.push(...units);
    this.buttons.push(...made);
    this.rarer.before(...made);
    const left = this.model.get("units").length + this.model.get("more") - this.units.length;
    this.rarer.textContent = `and ${left} rarer ${left === 1 ? "one" : "ones"}: list more`;
    if (!left) retire(this.rarer, made[0]);
  }

  detail() {
    this.pane = make("div", { class: "ub-detail", role: "group", "aria-label": "Stretches of the unit" });
    this.pane.append(make("div", { class: "ub-none" }, "Choose a unit to hear where it occurs."));
    this.next = make("button", { type: "button", class: "ub-more" });
    return this.pane;
  }

  line() {
    this.note = make("div", { class: "ub-note", role: "status" }, HINT);
    return this.note;
  }

  listen() {
    const on = (node, name, handle) => node.addEventListener(name, handle, { signal: this.off.signal });
    on(this.box, "click", (event) => this.picked(this.buttons.indexOf(event.target.closest("button"))));
    on(this.box, "keydown", (event) => rove(event, this.buttons));
    on(this.rarer, "click", () => this.ask({ kind: "units", first: this.units.length }, "units"));
    on(this.next, "click", () => this.hear(this.here, this.parts(this.here).length, -1));
    on(this.pane, "click", (event) => this.again(this.chips.indexOf(event.target.closest("button"))));
    on(this.pane, "keydown", (event) => rove(event, this.chips));
    on(this.audio, "play", () => this.run());
    on(this.audio, "pause", () => this.halted());
    on(this.audio, "ended", () => this.further());
    on(this.audio, "error", () => this.audio.getAttribute("src") && this.tell("This browser cannot play the audio."));
    this.receive = (content, buffers) => this.arrived(content, buffers);
    this.model.on("msg:custom", this.receive);
  }

  picked(unit) {
    if (unit < 0) return;
    this.buttons[this.here]?.setAttribute("aria-pressed", "false");
    this.buttons[unit].setAttribute("aria-pressed", "true");
    aim(this.buttons, unit);
    if (unit !== this.here) this.show(unit);
    this.here = unit;
    this.model.set("selected", unit);
    this.model.save_changes();
    this.hear(unit, 0, -1);
  }

  parts(unit) {
    return this.sounds.get(unit) ?? [];
  }

  show(unit) {
    this.audio.pause();
    this.playing = null;
    this.chips = [];
    this.rows = new Map(); // clip → its chips
    this.head = make("div", { class: "ub-head" });
    this.next.hidden = true;
    this.pane.replaceChildren(this.head, this.next);
    this.pane.scrollTop = 0;
    this.count(unit);
    for (const part of this.parts(unit)) this.extend(unit, part);
  }

  extend(unit, { stretches }) { // by the chips of one more part
    const made = stretches.map((stretch) => {
      const chip = make("button", { type: "button", class: "ub-stretch", title: told(stretch), tabindex: "-1" });
      chip.setAttribute("aria-label", told(stretch));
      if (stretch.said) chip.append(stretch.before, make("b", {}, stretch.said), stretch.after);
      else if (stretch.said === null) chip.append(`${stretch.start_s.toFixed(2)} s`); // no transcript: nobody knows
      else chip.append(make("span", { class: "ub-pause" }, "pause"));
      return chip;
    });
    if (!this.chips.length) made[0]?.setAttribute("tabindex", "0");
    made.forEach((chip, index) => {
      const { clip } = stretches[index];
      if (!this.rows.has(clip)) {
        this.rows.set(clip, make("div", { class: "ub-row" }, make("span", { class: "ub-clip" }, `clip ${clip}`)));
        this.next.before(this.rows.get(clip));
      }
      this.rows.get(clip).append(chip);
    });
    this.chips.push(...made);
    this.count(unit);
    if (this.chips.length < this.units[unit].count) this.next.hidden = false;
    else retire(this.next, made[0]);
  }

  count(unit) {
    const { name, count } = this.units[unit], here = this.chips.length;
    const first = here && here < count ? `, the first ${here}` : "";
    this.head.textContent = `unit ${name}: ${count} ${count === 1 ? "stretch" : "stretches"}${first}`;
    this.next.textContent = `and ${count - here} more: hear the next`;
  }

  again(stretch) {
    if (stretch < 0) return;
    aim(this.chips, stretch);
    const { part } = this.parts(this.here).findLast(({ first }) => first <= stretch);
    this.hear(this.here, part, stretch);
  }

  further() { // a part has been heard: on with the next one
    if (!this.playing || this.stop_s !== null) return;
    const { first, stretches, part } = this.playing;
    if (first + stretches.length < this.units[this.here].count) this.hear(this.here, part + 1, -1);
  }

  hear(unit, part, stretch) {
    this.wanted = [unit, part, stretch];
    clearTimeout(this.hint);
    if (this.parts(unit)[part]) return this.play();
    this.ask({ kind: "audio", unit, part, opus: this.audio.canPlayType('audio/ogg; codecs="opus"') !== "" }, "audio");
  }

  ask(message, what) {
    clearTimeout(this.hint);
    const quiet = `No ${what} yet: ${what === "audio" ? "it comes" : "they come"} when the kernel is free. In a saved notebook, run the cell again.`;
    this.hint = setTimeout(() => this.tell(quiet), HINT_MS);
    this.model.send(message);
  }

  arrived(content, buffers) {
    if (content?.kind === "units") return this.listed(content);
    if (content?.kind !== "audio" && content?.kind !== "failed") return;
    const { unit, part, stretches } = content;
    const ours = this.wanted?.[0] === unit && this.wanted[1] === part; // else another view asked, or another click has followed
    if (ours) clearTimeout(this.hint);
    if (content.kind === "failed") return ours ? this.tell(content.reason) : undefined;
    const parts = this.parts(unit);
    if (parts.length === part) { // not there yet, and none before it is missing
      const first = parts.reduce((count, one) => count + one.stretches.length, 0);
      const made = { part, stretches, first, url: URL.createObjectURL(new Blob([buffers[0]], { type: content.mime })) };
      this.sounds.set(unit, [...parts, made]);
      if (unit === this.here) this.extend(unit, made);
    }
    if (ours) this.play();
  }

  listed({ first, units }) {
    if (first !== this.units.length) return; // they are here: two clicks, or another view asked
    clearTimeout(this.hint);
    this.enlist(units);
  }

  play() {
    const [unit, part, stretch] = this.wanted, { name, said } = this.units[unit];
    const { url, stretches, first } = (this.playing = this.parts(unit)[part]);
    const alone = stretch < 0 ? null : stretches[stretch - first];
    this.wanted = null;
    if (this.audio.getAttribute("src") !== url) this.audio.src = url;
    this.stop_s = alone ? alone.to_s : null;
    this.audio.currentTime = alone ? alone.from_s : 0;
    this.tell(alone ? `playing ${told(alone)}` : `playing unit ${name}${said ? `, mostly ${said}` : ""}`);
    this.audio.play().catch((error) => {
      if (error.name !== "AbortError") this.tell(`The browser did not play the audio: ${error.message}`); // Abort: another click
    });
  }

  run() { // frame by frame: the browser's own timeupdate comes too rarely for stretches of 0.2 s
    const step = () => {
      const now = this.audio.currentTime;
      if (this.stop_s !== null && now >= this.stop_s) this.audio.pause();
      const at = this.playing ? stretchAt(this.playing.stretches, now) : -1;
      this.light(at < 0 ? -1 : this.playing.first + at);
      if (!this.audio.paused) this.frame = requestAnimationFrame(step);
    };
    cancelAnimationFrame(this.frame);
    step();
  }

  halted() {
    if (!this.audio.paused) return; // the event comes late: the next unit plays already
    cancelAnimationFrame(this.frame);
    this.light(-1);
    this.tell(HINT);
  }

  light(index) {
    const before = this.chips.findIndex((chip) => chip.classList.contains("ub-now"));
    if (before === index) return;
    this.chips[before]?.classList.remove("ub-now");
    this.chips[index]?.classList.add("ub-now");
    const chip = this.chips[index]; // scrolls the stretches only, never the notebook
    if (chip && this.pane.scrollHeight > this.pane.clientHeight) this.pane.scrollTop = chip.offsetTop - this.pane.clientHeight / 2;
  }

  tell(text) {
    this.note.textContent = text;
  }

  remove() {
    this.off.abort();
    clearTimeout(this.hint);
    cancelAnimationFrame(this.frame);
    this.model.off("msg:custom", this.receive);
    this.audio.pause();
    this.audio.removeAttribute("src");
    for (const { url } of [...this.sounds.values()].flat()) URL.revokeObjectURL(url);
    this.root.remove();
  }
}

export default {
  render({ model, el }) {
    const view = new View(model, el);
    return () => view.remove();
  },
};
