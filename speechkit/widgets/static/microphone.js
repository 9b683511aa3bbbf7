// Microphone: record → int16 pieces to Python → words back, stable and unstable in two styles, with a level meter.
// One piece is under way at a time; what is said meanwhile goes into the next. All text enters through textContent.

const RATE = 16000;
const PIECE_S = 0.1; // the shortest piece that is sent
const PART = 512 * 1024; // bytes of a file per message
const QUIET_MS = 4000; // no answer for so long: say what may be the matter
const HELD_S = 120; // no answer for so much sound: stop, before the page's memory goes
const MUTE_S = 3, MUTE = 1e-4; // so long nothing above this: the microphone is switched off
const BUSY = 0.9; // computing time over audio time: from here on partials get rarer, and near 1 words fall behind
const LAGS = 40; // words over which the read-out takes the median
const WORKLET = `registerProcessor("speechkit-tap", class extends AudioWorkletProcessor {
  held = new Float32Array(Math.ceil(sampleRate / 50)); // 20 ms: a message for every 128 samples would keep the page busy
  at = 0;
  process([input]) {
    for (const value of input[0] ?? []) {
      this.held[this.at++] = value;
      if (this.at === this.held.length) { this.port.postMessage(this.held); this.at = 0; }
    }
    return true;
  }
});`;
const HINT = "Start, speak, Stop. Grey words in italics may still change.";
const QUIET = "No answer yet: it comes when the kernel is free. In a saved notebook, run the cell again.";
const SLOW = "The machine is busy: words come late, none is lost.";
const SILENT = "The microphone is on, but silent: is it muted, or is another one chosen?";

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text nodes, never markup
  return node;
}

/** Float samples in ±1 → int16. */
export function toInt16(piece) {
  return Int16Array.from(piece, (value) => Math.round(Math.max(-1, Math.min(1, value)) * 32767));
}

/** Int16 pieces → the bytes of all of them. */
export function joined(pieces) {
  const out = new Int16Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.length;
  }
  return out.buffer;
}

/** Root mean square of a piece → meter, 0 to 1: -60 dB to 0 dB. */
export function meter(piece) {
  const power = piece.reduce((sum, value) => sum + value * value, 0) / Math.max(piece.length, 1);
  return Math.min(1, Math.max(0, 1 + Math.log10(power + 1e-12) / 6));
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

/** Why the browser gave no microphone, and what to do. */
export function reason(error) {
  const advice = "Or choose an audio file.";
  if (!navigator.mediaDevices?.getUserMedia) return `This page may not use the microphone: browsers allow it on https and on localhost only. ${advice}`;
  if (error.name === "NotAllowedError") return `The browser denied the microphone. Allow it for this page (the icon beside the address), then press Start again. ${advice}`;
  if (error.name === "NotFoundError") return `No microphone was found on this computer. Connect one, then press Start again. ${advice}`;
  if (error.name === "NotReadableError") return `The microphone is in use by another program, or the system denies it. ${advice}`;
  return `The microphone does not start: ${error.message || error.name}. ${advice}`;
}

function base64(buffer) {
  const bytes = new Uint8Array(buffer);
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
}

class View {
  constructor(model, el) {
    this.model = model;
    this.id = Math.random().toString(36).slice(2); // another view of this model counts its messages too
    this.sent = 0;
    this.waiting = new Map(); // seq → what to do with the answer
    this.told = 0; // finals on screen
    this.job = null; // what is going on: { kind: "asking" | "live" | "file" }
    this.root = make("section", { class: "microphone", "aria-label": "Microphone", "data-lm-suppress-shortcuts": "true" }, this.head(), this.said(), this.foot());
    this.off = new AbortController();
    this.listen();
    el.append(this.root);
    this.model.get("lines").forEach((text) => this.line(text));
    this.begin(null);
  }

  head() {
    this.button = make("button", { type: "button", class: "mi-start" }, "Start");
    this.bar = make("div", { class: "mi-bar" });
    this.meter = make("div", { class: "mi-meter", role: "meter", "aria-label": "Level", "aria-valuemin": "0", "aria-valuemax": "1", "aria-valuenow": "0" }, this.bar);
    this.lag = make("span", { class: "mi-lag", title: "From the page receiving a sound to the answer about it, and from the end of a word to when it no longer changes (median)" });
    return make("div", { class: "mi-head" }, this.button, make("span", { class: "mi-title" }, this.model.get("title")), this.lag, this.meter);
  }

  said() {
    const lang = this.model.get("language"), spoken = { dir: "auto", ...(lang && { lang }) };
    this.log = make("div", { class: "mi-log", role: "log", "aria-label": "What was said", ...spoken });
    this.stable = make("span", { class: "mi-stable" });
    this.open = make("span", { class: "mi-open" });
    this.now = make("p", { class: "mi-now", "aria-label": "Being said", ...spoken }, this.stable, this.open); // changes too fast to be read out
    this.box = make("div", { class: "mi-said", tabindex: "0", role: "group", "aria-label": "Words" }, this.log, this.now);
    return this.box;
  }

  foot() {
    this.note = make("div", { class: "mi-note", role: "status" }, HINT);
    this.file = make("input", { type: "file", accept: "audio/*,video/webm,video/mp4" });
    return make("div", { class: "mi-foot" }, this.note, make("label", { class: "mi-file" }, "Choose an audio file", this.file));
  }

  listen() {
    const on = (node, name, handle) => node.addEventListener(name, handle, { signal: this.off.signal });
    on(this.button, "click", () => (this.job ? this.stop() : this.start()));
    on(this.file, "change", () => this.file.files[0] && this.upload(this.file.files[0]));
    this.receive = (content) => this.answered(content);
    this.relined = () => this.model.get("lines").slice(this.told).forEach((text) => this.line(text));
    this.model.on("msg:custom", this.receive);
    this.model.on("change:lines", this.relined);
  }

  begin(job) {
    const asking = job?.kind === "asking";
    this.job = job;
    this.root.classList.toggle("mi-live", job !== null && !asking);
    this.button.textContent = job && !asking ? "Stop" : "Start";
    this.button.disabled = asking;
    this.file.disabled = job !== null;
    return job;
  }

  async start() {
    const job = this.begin({ kind: "asking" });
    this.tell("waiting for the browser's permission …");
    try {
      // echo cancelling is for calls, and noise suppression cuts what the model was trained to hear
      const media = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false } });
      if (this.job !== job) return media.getTracks().forEach((track) => track.stop());
      this.media = media;
      await this.record();
    } catch (error) {
      if (this.job === job) this.end(reason(error), true);
      else this.release();
      return;
    }
    if (this.job !== job) return this.release(); // the view was left meanwhile
    Object.assign(this, { pieces: [], held: 0, heard: 0, loudest: 0, lags: [] });
    this.begin({ kind: "live" });
    this.tell("listening …");
    this.ask({ kind: "start" });
    this.tap.port.onmessage = (event) => this.captured(event.data);
    this.media.getTracks()[0].onended = () => this.stop("The microphone was switched off.");
  }

  async record() {
    try {
      this.context = new AudioContext({ sampleRate: RATE });
      this.source = this.context.createMediaStreamSource(this.media);
    } catch {
      // Firefox does not convert between rates here; Python does
      await this.context?.close();
      this.context = new AudioContext();
      this.source = this.context.createMediaStreamSource(this.media);
    }
    const url = URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" }));
    await this.context.audioWorklet.addModule(url);
    URL.revokeObjectURL(url);
    this.tap = new AudioWorkletNode(this.context, "speechkit-tap", { channelCount: 1, channelCountMode: "explicit" });
    this.source.connect(this.tap).connect(this.context.destination); // it plays nothing; unconnected, some browsers let it sleep
    await this.context.resume();
  }

  captured(piece) {
    const rate = this.context.sampleRate;
    this.oldest ??= performance.now() - (piece.length / rate) * 1000;
    this.pieces.push(toInt16(piece));
    this.held += piece.length;
    this.heard += piece.length;
    this.loudest = piece.reduce((most, value) => Math.max(most, Math.abs(value)), this.loudest);
    this.level(meter(piece));
    if (this.held >= HELD_S * rate) return this.stop(`Python has not answered for ${HELD_S} s: recording has stopped.`);
    if (this.held >= PIECE_S * rate && !this.waiting.size) this.flush();
  }

  async flush() {
    const { pieces, oldest, job } = this, newest = performance.now();
    Object.assign(this, { pieces: [], held: 0, oldest: undefined });
    const answer = await this.ask({ kind: "chunk", rate: this.context.sampleRate }, joined(pieces));
    if (this.job !== job) return;
    if (answer.kind === "failed") return this.stop(answer.reason);
    const now = performance.now();
    this.lags.push(...answer.lags_s.map((lag_s) => lag_s + (now - newest) / 1000));
    this.lags.splice(0, this.lags.length - LAGS);
    const settle = this.lags.length ? ` · words settle in ${median(this.lags).toFixed(1)} s` : "";
    this.lag.textContent = `sound to screen ${((now - oldest) / 1000).toFixed(2)} s${settle}`;
    const silent = this.loudest < MUTE && this.heard > MUTE_S * this.context.sampleRate;
    this.tell(answer.load > BUSY ? SLOW : silent ? SILENT : "listening …", silent);
    if (this.held >= PIECE_S * this.context.sampleRate) this.flush();
  }

  async stop(why = "") {
    const job = this.job, live = job?.kind === "live";
    if (live && this.pieces.length && !why) this.ask({ kind: "chunk", rate: this.context.sampleRate }, joined(this.pieces));
    this.end(why || "finishing …", Boolean(why));
    const answer = await this.ask({ kind: "stop" });
    if (!this.job && !why) this.tell(answer.kind === "failed" ? answer.reason : HINT, answer.kind === "failed");
  }

  /** Microphone off, whatever part of the recording there is. */
  release() {
    if (this.tap) this.tap.port.onmessage = null;
    this.media?.getTracks().forEach((track) => { track.onended = null; track.stop(); });
    if (this.context?.state !== "closed") this.context?.close();
    this.media = this.context = this.tap = null;
  }

  end(text, bad = false) {
    this.release();
    this.level(0);
    this.begin(null);
    this.tell(text, bad);
  }

  async upload(file) {
    const job = this.begin({ kind: "file" });
    this.file.value = ""; // so that the same file can be chosen again
    let answer;
    for (let at = 0; at === 0 || at < file.size; at += PART) {
      this.tell(`sending ${file.name} …`);
      const bytes = await file.slice(at, at + PART).arrayBuffer();
      if (this.job === job) answer = await this.ask({ kind: "part", first: at === 0, last: at + PART >= file.size }, bytes);
      if (this.job !== job) return;
      if (answer.kind === "failed") return this.end(answer.reason, true);
    }
    while (answer.more) {
      this.tell(`transcribing ${file.name} …`);
      answer = await this.ask({ kind: "more" });
      if (this.job !== job) return;
      if (answer.kind === "failed") return this.end(answer.reason, true);
    }
    this.end(`${file.name} is done.`);
  }

  ask(content, buffer = null) {
    const seq = `${this.id}.${++this.sent}`, channel = this.model.get("channel");
    const answer = new Promise((resolve) => this.waiting.set(seq, resolve));
    clearTimeout(this.hint);
    this.hint = setTimeout(() => this.tell(QUIET), QUIET_MS);
    if (channel && window.google?.colab?.kernel) {
      const lost = (why) => this.answered({ kind: "failed", reason: `Colab did not reach Python (${why}): run the cell again.`, finals: [], seq });
      const sent = google.colab.kernel.invokeFunction(channel, [{ ...content, seq }, buffer ? base64(buffer) : ""], {});
      sent.then((result) => this.answered(result.data["application/json"])).catch((error) => lost(error.message ?? error));
    } else this.model.send({ ...content, seq }, null, buffer ? [buffer] : []);
    return answer;
  }

  answered(content) {
    const resolve = this.waiting.get(content?.seq);
    if (!resolve) return; // the answer to another view of this model
    this.waiting.delete(content.seq);
    clearTimeout(this.hint);
    // the same lines may have come by themselves, as `lines`
    for (const text of content.finals.slice(Math.max(0, this.told - (content.count - content.finals.length)))) this.line(text);
    if (content.stable !== undefined) {
      this.stable.textContent = content.stable;
      this.open.textContent = content.open;
      this.box.scrollTop = this.box.scrollHeight;
    }
    resolve(content);
  }

  line(text) {
    this.told += 1;
    this.log.append(make("p", {}, text));
    this.box.scrollTop = this.box.scrollHeight;
  }

  level(value) {
    this.bar.style.width = `${Math.round(value * 100)}%`;
    this.meter.setAttribute("aria-valuenow", value.toFixed(2));
  }

  tell(text, bad = false) {
    if (this.note.textContent !== text) this.note.textContent = text; // said again, it would be read out again
    this.note.classList.toggle("mi-bad", bad);
  }

  remove() {
    if (this.job?.kind === "live" || this.job?.kind === "file") this.stop();
    else this.begin(null);
    this.release();
    clearTimeout(this.hint);
    this.off.abort();
    this.model.off("msg:custom", this.receive);
    this.model.off("change:lines", this.relined);
    this.root.remove();
  }
}

export default {
  render({ model, el }) {
    const view = new View(model, el);
    return () => view.remove();
  },
};
