// Transcript player: a model with words, peaks and times → waveform, words to click, keys, highlight.
// The sound comes by one custom message, so that no saved notebook holds it. All text enters through textContent.

const SYNC_MS = 250; // how often Python hears where we are
const HINT_MS = 2500; // the kernel answers later than this: say why it is quiet
const BEFORE_S = 0.04, AFTER_S = 0.08; // CTC spans are narrow; this much around a word keeps its edges audible
const HOLD_S = 0.25; // a word stays lit this long into the pause behind it
const BARS = 150, WIDE = 1000, TALL = 54;
// the keys of a slider (WAI-ARIA authoring practices): where each leads from `now`, in seconds
const SLIDES = {
  ArrowLeft: (now) => now - 1, ArrowDown: (now) => now - 1, ArrowRight: (now) => now + 1, ArrowUp: (now) => now + 1,
  Home: () => 0, End: (_now, end) => end,
};
const SAID = { high: "", mid: ", less certain", low: ", doubtful" };

/** 64.83 → "1:04.8"; hours only where there are any. */
export function clock(seconds) {
  const tenths = Math.round(Math.max(seconds, 0) * 10);
  const minutes = Math.floor(tenths / 600), rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  const hours = Math.floor(minutes / 60);
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** Index of the word heard at `seconds`, -1 in a longer pause. Words are in order of their start. */
export function wordAt(words, seconds) {
  let low = 0, high = words.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (words[middle].start_s <= seconds) low = middle + 1;
    else high = middle;
  }
  return low && seconds < words[low - 1].end_s + HOLD_S ? low - 1 : -1;
}

/** Peaks in [0, 1] → the SVG path of at most `BARS` bars in a WIDE × TALL box. */
export function wavePath(peaks) {
  const step = Math.max(1, Math.floor(peaks.length / BARS)), count = Math.ceil(peaks.length / step);
  const middle = TALL / 2 - 3, reach = TALL / 2 - 5;
  let path = "";
  for (let bar = 0; bar < count; bar++) {
    const half = Math.max(Math.max(...peaks.slice(bar * step, (bar + 1) * step)) * reach, 0.6);
    const x = (((bar + 0.5) * WIDE) / count).toFixed(1);
    path += `M${x} ${(middle - half).toFixed(1)}V${(middle + half).toFixed(1)}`;
  }
  return path;
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

class View {
  constructor(model, el) {
    this.model = model;
    this.words = model.get("words");
    this.seconds = model.get("duration_s");
    this.focus = 0; // the word that Tab reaches
    this.lit = -1;
    this.stop_s = null; // where a single word ends, null while playing on
    this.wanted = null; // what to play when the sound arrives
    this.synced = 0;
    this.audio = new Audio();
    this.root = make(
      "section",
      // JupyterLab would take the arrow keys and Enter for its own
      { class: "transcript-player", "aria-label": "Transcript player", "data-lm-suppress-shortcuts": "true" },
      this.head(), this.sound(), this.spoken(), this.legend(), this.notes(),
    );
    this.off = new AbortController();
    this.listen();
    el.append(this.root);
    this.show(0);
    this.fetch();
  }

  head() {
    const doubtful = this.words.filter((word) => word.level === "low").length;
    const head = make("div", { class: "tp-head" });
    const title = this.model.get("title");
    if (title) head.append(make("span", { class: "tp-title" }, title));
    head.append(make("span", { class: "tp-about" }, this.model.get("about")));
    if (doubtful) {
      this.check = make("button", { class: "tp-check", type: "button" }, `${doubtful} to check ›`);
      this.check.setAttribute("aria-label", `Play the next of ${doubtful} doubtful words`);
      head.append(this.check);
    }
    return head;
  }

  sound() {
    this.button = make("button", { class: "tp-play", type: "button", "aria-label": "Play" });
    this.button.append(
      draw("svg", { class: "tp-arrow", viewBox: "0 0 16 16", "aria-hidden": "true" }, draw("path", { d: "M4 1.5v13l10.5-6.5z" })),
      draw("svg", { class: "tp-bars", viewBox: "0 0 16 16", "aria-hidden": "true" }, draw("path", { d: "M3 2h3.6v12H3zM9.4 2H13v12H9.4z" })),
    );
    this.wave = make("div", {
      class: "tp-wave", role: "slider", tabindex: "0", "aria-label": "Position",
      "aria-valuemin": "0", "aria-valuemax": this.seconds.toFixed(1), title: "click to seek · ← → one second",
    });
    this.wave.append(this.picture());
    this.time = make("span", { class: "tp-time" });
    return make("div", { class: "tp-sound" }, this.button, this.wave, this.time);
  }

  picture() {
    const d = wavePath(this.model.get("peaks")), svg = draw("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.band = draw("rect", { class: "tp-band", y: 0, height: TALL - 6, width: 0, rx: 3 });
    this.done = draw("path", { class: "tp-done", d });
    svg.append(this.band, draw("path", { class: "tp-rest", d }), this.done);
    for (const word of this.words) {
      if (word.level === "high") continue;
      svg.append(draw("rect", { class: `tp-tick-${word.level}`, y: TALL - 4, height: 4, rx: 2, ...this.span(word) }));
    }
    return svg;
  }

  span(word) {
    const scale = WIDE / Math.max(this.seconds, 0.001);
    return { x: word.start_s * scale, width: Math.max(word.end_s - word.start_s, 0.02) * scale };
  }

  spoken() {
    const language = this.model.get("language");
    this.box = make("div", { class: "tp-words", role: "group", "aria-label": "Words", dir: "auto" });
    if (language) this.box.setAttribute("lang", language);
    this.buttons = this.words.map((word, index) => {
      const label = `${word.text}${SAID[word.level] ?? ""}`;
      const title = `${clock(word.start_s)}–${clock(word.end_s)} · confidence ${word.confidence.toFixed(2)}`;
      const button = make("button", { class: `tp-word tp-${word.level}`, type: "button", tabindex: index ? "-1" : "0", title });
      button.append(word.text);
      button.setAttribute("aria-label", label);
      button.dataset.index = index;
      if (word.spaced) this.box.append(" ");
      this.box.append(button);
      return button;
    });
    if (!this.words.length) this.box.append(make("span", { class: "tp-none" }, "(no speech)"));
    return this.box;
  }

  legend() {
    const key = (level, line, text) => make("span", {}, make("span", { class: `tp-word tp-${level}` }, line), ` ${text}`);
    return make(
      "div", { class: "tp-legend" },
      key("high", "solid", "≥ 0.85"), key("mid", "dashed", "0.6–0.85"), key("low", "wavy", "< 0.6: listen"),
      make("span", { class: "tp-keys" }, "click or Enter: hear a word · space: play · ← →: words"),
    );
  }

  notes() {
    this.note = make("div", { class: "tp-note", role: "status" });
    return this.note;
  }

  listen() {
    const on = (node, name, handle) => node.addEventListener(name, handle, { signal: this.off.signal });
    on(this.button, "click", () => this.toggle());
    on(this.box, "click", (event) => this.clicked(event));
    on(this.wave, "pointerdown", (event) => this.drag(event));
    on(this.wave, "pointermove", (event) => event.buttons && this.drag(event));
    on(this.root, "keydown", (event) => this.key(event));
    // browsers press a button when space comes up: the play button has acted by then, the one for doubtful words has not
    on(this.root, "keyup", (event) => event.key === " " && event.target !== this.check && event.preventDefault());
    if (this.check) on(this.check, "click", () => this.nextDoubtful());
    on(this.audio, "play", () => this.run());
    on(this.audio, "pause", () => this.halted());
    on(this.audio, "seeked", () => this.show(this.audio.currentTime));
    on(this.audio, "error", () => this.audio.getAttribute("src") && this.tell("This browser cannot play the audio."));
    this.receive = (content, buffers) => this.arrived(content, buffers);
    this.model.on("msg:custom", this.receive);
  }

  fetch() {
    const opus = this.audio.canPlayType('audio/ogg; codecs="opus"') !== "";
    this.model.send({ kind: "audio", opus });
  }

  arrived(content, buffers) {
    if (content?.kind !== "audio" || this.url) return; // another view of this model may have asked too
    this.url = URL.createObjectURL(new Blob([buffers[0]], { type: content.mime }));
    this.audio.src = this.url;
    clearTimeout(this.hint);
    this.tell("");
    const wanted = this.wanted;
    this.wanted = null;
    if (wanted) this.play(...wanted);
  }

  play(from_s, stop_s = null) {
    if (!this.url) {
      this.wanted = [from_s, stop_s];
      this.show(from_s);
      const quiet = "No audio yet: it comes when the kernel is free. In a saved notebook, run the cell again to hear it.";
      clearTimeout(this.hint);
      this.hint = setTimeout(() => this.tell(quiet), HINT_MS);
      return;
    }
    this.stop_s = stop_s;
    this.audio.currentTime = from_s;
    this.audio.play().catch((error) => {
      if (error.name !== "AbortError") this.tell(`The browser did not play the audio: ${error.message}`); // Abort: paused at once
    });
  }

  toggle() {
    if (!this.audio.paused) return this.audio.pause();
    const now = this.url ? this.audio.currentTime : 0;
    this.play(now >= this.seconds - 0.05 ? 0 : now);
  }

  hear(index, on = false) {
    this.select(index);
    const word = this.words[index];
    this.play(Math.max(0, word.start_s - BEFORE_S), on ? null : Math.min(word.end_s + AFTER_S, this.seconds));
  }

  nextDoubtful() {
    const low = this.words.flatMap((word, index) => (word.level === "low" ? [index] : []));
    const selected = this.model.get("selected");
    this.hear(low.find((index) => index > selected) ?? low[0]);
    this.reveal(this.buttons[this.focus]);
  }

  clicked(event) {
    const button = event.target.closest(".tp-word");
    if (button) this.hear(Number(button.dataset.index), event.shiftKey);
  }

  select(index, focus = false) {
    this.buttons[this.focus]?.setAttribute("tabindex", "-1");
    this.focus = index;
    this.buttons[index].setAttribute("tabindex", "0");
    if (focus) this.buttons[index].focus();
    for (const [name, value] of Object.entries(this.span(this.words[index]))) this.band.setAttribute(name, value);
    this.model.set("selected", index);
    this.model.save_changes();
  }

  seek(seconds) {
    const at = Math.min(Math.max(seconds, 0), this.seconds);
    this.stop_s = null;
    if (this.url) this.audio.currentTime = at;
    this.show(at);
    this.sync(at, true);
  }

  drag(event) {
    const box = this.wave.getBoundingClientRect();
    this.seek(((event.clientX - box.left) / box.width) * this.seconds);
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const word = event.target.closest?.(".tp-words .tp-word");
    if (!this.act(event, word)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  act(event, word) {
    const left = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.target === this.wave && event.key in SLIDES) this.seek(SLIDES[event.key](this.at(), this.seconds));
    else if (event.key === " " && event.target !== this.check) event.repeat || this.toggle(); // held down it acts once
    else if (left && this.words.length) this.move(left);
    else if (event.key === "Enter" && word) this.hear(Number(word.dataset.index), event.shiftKey);
    else if ((event.key === "Home" || event.key === "End") && word) this.select(event.key === "Home" ? 0 : this.words.length - 1, true);
    else return false;
    return true;
  }

  move(step) {
    const visual = getComputedStyle(this.box).direction === "rtl" ? -step : step;
    const fresh = !this.buttons.includes(document.activeElement) && this.model.get("selected") < 0;
    const index = fresh ? 0 : Math.min(Math.max(this.focus + visual, 0), this.words.length - 1);
    this.select(index, true);
  }

  at() {
    return this.url ? this.audio.currentTime : this.model.get("current_s");
  }

  run() {
    this.root.classList.add("tp-playing");
    this.button.setAttribute("aria-label", "Pause");
    const step = () => {
      const now = this.audio.currentTime;
      if (this.stop_s !== null && now >= this.stop_s) this.audio.pause();
      this.show(now);
      this.sync(now);
      if (!this.audio.paused) this.frame = requestAnimationFrame(step);
    };
    cancelAnimationFrame(this.frame);
    step();
  }

  halted() {
    cancelAnimationFrame(this.frame);
    this.root.classList.remove("tp-playing");
    this.button.setAttribute("aria-label", "Play");
    this.show(this.audio.currentTime);
    this.sync(this.audio.currentTime, true);
    this.stop_s = null;
  }

  show(now) {
    const share = this.seconds ? Math.min(now / this.seconds, 1) : 0;
    this.done.style.clipPath = `inset(-4px ${(100 - share * 100).toFixed(2)}% -4px -4px)`;
    const text = `${clock(now)} / ${clock(this.seconds)}`;
    if (text !== this.time.textContent) {
      this.time.textContent = text;
      this.wave.setAttribute("aria-valuenow", now.toFixed(1));
      this.wave.setAttribute("aria-valuetext", text);
    }
    this.light(this.stop_s !== null ? this.focus : wordAt(this.words, now));
  }

  light(index) {
    if (index === this.lit) return;
    const before = this.buttons[this.lit], after = this.buttons[index];
    before?.classList.remove("tp-now");
    before?.removeAttribute("aria-current");
    after?.classList.add("tp-now");
    after?.setAttribute("aria-current", "true");
    this.lit = index;
    if (after && !this.audio.paused) this.reveal(after);
  }

  reveal(button) { // scrolls the words only, never the notebook
    const top = button.offsetTop - this.box.clientHeight / 2;
    if (this.box.scrollHeight > this.box.clientHeight) this.box.scrollTop = top;
  }

  sync(now, at_once = false) {
    if (!at_once && performance.now() - this.synced < SYNC_MS) return;
    this.synced = performance.now();
    this.model.set("current_s", Math.round(now * 1000) / 1000);
    this.model.save_changes();
  }

  tell(text) {
    this.note.textContent = text;
  }

  destroy() {
    this.off.abort();
    this.model.off("msg:custom", this.receive);
    clearTimeout(this.hint);
    cancelAnimationFrame(this.frame);
    this.audio.pause();
    this.audio.removeAttribute("src");
    if (this.url) URL.revokeObjectURL(this.url);
    this.root.remove();
  }
}

function render({ model, el }) {
  const view = new View(model, el);
  return () => view.destroy();
}

export default { render };
