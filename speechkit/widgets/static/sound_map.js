// Map of sounds: points with a text and a sound each → hover or arrow keys to read, click or Enter to hear.
// A sound comes by a custom message when it is asked for, so that no saved notebook holds it. All text enters through
// textContent.

const WIDE = 640, TALL = 360; // as in sound_map.py
const NEAR = 14; // how near to a point counts as on it, in units of the picture: points are small, fingers are not
const LEGEND_SIZE = 5; // the size for which the legend's paths are drawn
const HINT_MS = 2500; // the kernel answers later than this: say why it is quiet
const HINT_MUTE = "hover or arrow keys: read · a label: hide";
const HINT = "hover or arrow keys: read · click or Enter: hear · a label: hide";
const AHEAD = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = { PageUp: -1, PageDown: 1 };

/** The nearest of `spots` to a place, at most NEAR away, that is shown; else -1. */
export function nearest(spots, shown, [x, y]) {
  let best = -1, least = NEAR;
  spots.forEach((spot, index) => {
    const far = Math.hypot(spot[0] - x, spot[1] - y);
    if (far < least && shown(index)) [best, least] = [index, far];
  });
  return best;
}

/** The nearest of `spots` that lies in direction `way` from spot `from`, within 45° where there is one; else -1. */
export function towards(spots, shown, from, way) {
  let best = -1, least = Infinity;
  spots.forEach(([x, y], index) => {
    const dx = x - spots[from][0], dy = y - spots[from][1];
    const along = dx * way[0] + dy * way[1], aside = Math.abs(dx * way[1] - dy * way[0]);
    const cost = Math.hypot(dx, dy) + 2 * Math.max(0, aside - along);
    if (index !== from && shown(index) && along > 0 && cost < least) [best, least] = [index, cost];
  });
  return best;
}

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

function paint(node, [light, both]) {
  node.style.fill = light; // twice: a browser without light-dark() keeps the light colour
  node.style.fill = both;
}

class View {
  constructor(model, el) {
    this.model = model;
    this.texts = model.get("texts");
    this.labels = model.get("labels");
    this.kinds = model.get("kinds");
    this.legend = model.get("legend");
    this.spots = model.get("points");
    this.mute = model.get("mute");
    this.hidden = new Set(); // kinds that the legend has switched off
    this.here = -1; // the point that is read
    this.urls = new Map(); // row → address of its sound
    this.wanted = -1;
    this.audio = new Audio();
    this.off = new AbortController();
    this.root = make(
      "section", { class: "sound-map", "aria-label": "Map of sounds", "data-lm-suppress-shortcuts": "true" },
      this.head(), this.picture(), this.keys(), this.line(),
    );
    this.listen();
    el.append(this.root);
  }

  head() {
    const title = this.model.get("title");
    return title ? make("div", { class: "sm-title" }, title) : "";
  }

  picture() {
    const how = `Arrow keys move between them, Page Down and Page Up go through all${this.mute ? "." : ", Enter plays the sound."}`;
    this.field = make("div", {
      class: this.mute ? "sm-field" : "sm-field sm-heard", tabindex: "0", role: "application",
      "aria-roledescription": "map of points", "aria-label": `${this.spots.length} points. ${how}`,
    });
    const svg = draw("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, "aria-hidden": "true" });
    const scale = this.model.get("size") / LEGEND_SIZE;
    this.marks = this.spots.map(([x, y], index) => {
      const key = this.legend[this.kinds[index]];
      const mark = draw("path", { d: key.path, transform: `translate(${x} ${y}) scale(${scale})`, class: "sm-mark" });
      paint(mark, key.paint);
      return mark;
    });
    this.ring = draw("circle", { class: "sm-ring", r: 10, cx: -99, cy: -99 });
    svg.append(...this.marks, this.ring);
    this.words = make("div");
    this.tip = make("div", { class: "sm-tip", "aria-hidden": "true" }, this.words);
    this.reader = make("div", { class: "sm-reader", role: "status" });
    this.field.append(svg, this.tip, this.reader);
    if (!this.spots.length) {
      this.field.classList.add("sm-empty");
      this.field.append(make("div", { class: "sm-none" }, "no points"));
    }
    return this.field;
  }

  keys() {
    this.buttons = this.legend.map((key, kind) => {
      const swatch = draw("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, draw("path", { d: key.path }));
      paint(swatch.firstChild, key.paint);
      const name = make("span", { class: "sm-name" }, key.name);
      const button = make("button", { type: "button", class: "sm-key", "aria-pressed": "true", title: key.name }, swatch, name, make("span", { class: "sm-count" }, String(key.count)));
      button.setAttribute("aria-label", `${key.name}, ${key.count} points`);
      button.dataset.kind = kind;
      return button;
    });
    return make("div", { class: "sm-keys", role: "group", "aria-label": "Labels: press to hide or show" }, ...this.buttons);
  }

  line() {
    this.hint = !this.spots.length ? "" : this.mute ? HINT_MUTE : HINT;
    this.note = make("div", { class: "sm-note", role: "status" }, this.hint);
    return this.note;
  }

  listen() {
    const on = (node, name, handle) => node.addEventListener(name, handle, { signal: this.off.signal });
    on(this.field, "pointermove", (event) => this.over(this.under(event)));
    on(this.field, "pointerleave", () => this.field.matches(":focus-visible") || this.leave());
    on(this.field, "click", (event) => this.under(event) >= 0 && this.hear(this.under(event)));
    on(this.field, "keydown", (event) => this.key(event));
    on(this.field, "blur", () => this.leave());
    on(this.audio, "error", () => this.audio.getAttribute("src") && this.tell("This browser cannot play the audio."));
    on(this.audio, "ended", () => this.playing(-1));
    for (const button of this.buttons) on(button, "click", () => this.toggle(button));
    this.receive = (content, buffers) => this.arrived(content, buffers);
    this.model.on("msg:custom", this.receive);
  }

  under(event) {
    const box = this.field.getBoundingClientRect(), unit = WIDE / box.width;
    return nearest(this.spots, (index) => this.shown(index), [(event.clientX - box.left) * unit, (event.clientY - box.top) * unit]);
  }

  over(index) {
    this.field.classList.toggle("sm-on", index >= 0);
    if (index >= 0 && index !== this.here) this.read(index);
    else if (index < 0 && !this.field.matches(":focus-visible")) this.leave();
  }

  shown(index) {
    return !this.hidden.has(this.kinds[index]);
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key in AHEAD || event.key in STEP) {
      const next = this.next(event.key);
      if (next >= 0) this.read(next);
    } else if ((event.key === "Enter" || event.key === " ") && this.here >= 0) {
      if (!event.repeat) this.hear(this.here);
    } else if (event.key === "Escape") this.leave();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  next(key) {
    const shown = (index) => this.shown(index);
    if (this.here >= 0 && key in AHEAD) return towards(this.spots, shown, this.here, AHEAD[key]);
    const step = STEP[key] ?? 1, end = this.spots.length;
    let index = this.here < 0 && step < 0 ? end - 1 : this.here + step; // points at one place are reached in this way only
    while (index >= 0 && index < end && !shown(index)) index += step;
    return index < end ? index : -1;
  }

  read(index) {
    this.here = index;
    const [x, y] = this.spots[index], text = this.texts[index], label = this.labels[index];
    this.ring.setAttribute("cx", x);
    this.ring.setAttribute("cy", y);
    this.words.textContent = text.includes(label) ? text : `${text} (${label})`;
    this.tip.style.left = `${(x / WIDE) * 100}%`;
    this.tip.style.top = `${(y / TALL) * 100}%`;
    // to the side with more room, and between the upper and the lower edge
    this.tip.style.transform = `translate(${x > WIDE / 2 ? "calc(-100% - 14px)" : "14px"}, ${(-y / TALL) * 100}%)`;
    this.tip.classList.add("sm-on");
    this.reader.textContent = this.tip.textContent;
  }

  leave() {
    this.here = -1;
    this.tip.classList.remove("sm-on");
    this.field.classList.remove("sm-on");
    this.ring.setAttribute("cx", -99);
  }

  toggle(button) {
    const kind = Number(button.dataset.kind), hide = !this.hidden.has(kind);
    hide ? this.hidden.add(kind) : this.hidden.delete(kind);
    button.setAttribute("aria-pressed", String(!hide));
    this.marks.forEach((mark, index) => mark.classList.toggle("sm-hidden", !this.shown(index)));
    if (this.here >= 0 && !this.shown(this.here)) this.leave();
  }

  hear(index) {
    this.read(index);
    this.model.set("selected", index);
    this.model.save_changes();
    if (this.mute) return;
    this.wanted = index;
    clearTimeout(this.late);
    if (this.urls.has(index)) return this.play(index);
    const quiet = "No audio yet: it comes when the kernel is free. In a saved notebook, run the cell again to hear it.";
    this.late = setTimeout(() => this.tell(quiet), HINT_MS);
    this.model.send({ kind: "audio", row: index, opus: this.audio.canPlayType('audio/ogg; codecs="opus"') !== "" });
  }

  arrived(content, buffers) {
    if (content?.kind !== "audio" && content?.kind !== "failed") return;
    const ours = content.row === this.wanted; // else another view asked, or another click has followed
    if (ours) clearTimeout(this.late);
    if (content.kind === "failed") return ours ? this.tell(content.reason) : undefined;
    if (!this.urls.has(content.row)) this.urls.set(content.row, URL.createObjectURL(new Blob([buffers[0]], { type: content.mime })));
    if (ours) this.play(content.row);
  }

  play(index) {
    this.wanted = -1;
    this.audio.src = this.urls.get(index);
    this.playing(index);
    this.tell(`playing: ${this.texts[index]}`);
    this.audio.play().catch((error) => {
      if (error.name !== "AbortError") this.tell(`The browser did not play the audio: ${error.message}`); // Abort: another click
    });
  }

  playing(index) {
    this.marks.forEach((mark, row) => mark.classList.toggle("sm-playing", row === index));
    if (index < 0) this.tell(this.hint);
  }

  tell(text) {
    this.note.textContent = text;
  }

  remove() {
    this.off.abort();
    clearTimeout(this.late);
    this.model.off("msg:custom", this.receive);
    this.audio.pause();
    this.audio.removeAttribute("src");
    for (const url of this.urls.values()) URL.revokeObjectURL(url);
    this.root.remove();
  }
}

export default {
  render({ model, el }) {
    const view = new View(model, el);
    return () => view.remove();
  },
};
