// The page on which labels are set: what is shown, what keys and buttons do, saving.

import { Fields } from "./fields.js";
import { Frames } from "./frames.js";
import { boundariesOf, boundaryProblems, Labels, lockedWhy, phaseOf, withBoundaries } from "./labels.js";
import { VideoList } from "./list.js";
import { Playback } from "./playback.js";
import { getJson, postJson } from "./server.js";
import { phaseName, Timeline } from "./timeline.js";

const get = (id) => document.getElementById(id);
const POLL = 700; // ms between questions while videos are still looked into

// This tab and its reports so far. A reloaded tab stays the same one, a copied tab is another:
// the browser keeps the number only from the end of a page to its next start.
const tab = JSON.parse(sessionStorage.getItem("tab")) ?? { tab: crypto.randomUUID(), count: 0 };
sessionStorage.removeItem("tab");
addEventListener("pagehide", () => sessionStorage.setItem("tab", JSON.stringify(tab)));

class Page {
  constructor(state) {
    this.videos = state.videos;
    this.readOnly = state.read_only;
    this.facts = Array(state.videos.length);
    this.number = null;
    this.known = 0;
    this.saving = false;
    this.labels = new Labels(state, () => this.drawLabels());
    this.list = new VideoList(state.videos, this.labels, this.facts, (number) => this.open(number));
    this.fields = new Fields(this);
    this.playback = new Playback(get("picture"), get("stage-message"), () => this.drawFrame());
    this.playback.changed = () => { get("play").textContent = this.playback.playing ? "Pause" : "Play"; };
    this.timeline = new Timeline(get("timeline"), (frame) => this.go(frame),
      (phase, frame, done) => this.drag(phase, frame, done));
    get("title").textContent = state.folder.split(/[\\/]/).at(-1);
    get("title").title = state.folder;
    this.banners(state);
  }

  // What the fields show and change.
  get frame() { return this.playback.frame; }
  get frames() { return this.facts[this.number]?.frames ?? 0; }
  get fps() { return this.facts[this.number]?.fps ?? 0; }
  get ready() { return this.frames > 0; }

  banners(state) {
    const texts = [];
    if (state.read_only) texts.push(`Labels cannot be saved: ${state.read_only}.`);
    for (const line of state.absent.slice(0, 5)) texts.push(`labels.json, kept as it is: ${line}`);
    if (state.absent.length > 5)
      texts.push(`labels.json names ${state.absent.length - 5} more videos that are not here.`);
    get("banners").replaceChildren(...texts.map((text) =>
      Object.assign(document.createElement("p"), { className: "banner", textContent: text })));
  }

  say(text, kind = "") {
    get("message").textContent = text;
    get("message").className = kind;
  }

  async open(number) {
    if (number === undefined || number === null) return;
    this.number = number;
    history.replaceState(null, "", `#${number}`);
    get("name").textContent = this.videos[number];
    get("name").title = this.videos[number];
    if (!this.facts[number]) {
      this.playback.close("looking into the file…");
      this.list.show(number);
      try {
        this.learn(await getJson(`facts/${number}`));
      } catch (error) {
        if (this.number === number) this.playback.close(error.message);
        return;
      }
      if (this.number !== number) return;
    }
    const facts = this.facts[number];
    get("watch").classList.toggle("left-out", Boolean(facts.reason));
    get("fields").hidden = Boolean(facts.reason);
    this.list.show(number);
    if (facts.reason) {
      this.playback.close(`Training leaves this file out: ${facts.reason}`);
      get("place").textContent = "";
      return;
    }
    get("slider").max = facts.frames - 1;
    this.playback.crop = this.labels.entry(number).crop ?? null;
    this.drawFields();
    this.playback.open(new Frames(number, facts), this.labels.entry(number).trim?.[0] ?? 0);
  }

  // Take over what the server knows of a video, once.
  learn(facts) {
    if (this.facts[facts.number]) return;
    this.facts[facts.number] = facts;
    if (facts.entry) this.labels.take(facts.number, facts.entry);
  }

  travelList(step) {
    const number = this.list.next(step);
    if (number === undefined) this.say(`This is the ${step > 0 ? "last" : "first"} video of the list.`);
    else this.open(number);
  }

  go(frame) {
    this.playback.pause();
    this.playback.go(frame);
  }

  // Edit the present video as one step of undo; whether it can be edited.
  edit(change) {
    if (!this.ready) return false;
    this.say("");
    const locked = lockedWhy(this.labels.entry(this.number));
    if (locked) {
      this.say(locked, "wrong");
      this.drawFields();
      return false;
    }
    this.labels.edit(this.number, change);
    this.drawFields(); // a change that is none leaves the fields as they were typed
    return true;
  }

  // Whether boundaries can be set; says why not.
  takesBoundaries() {
    if (!this.ready) return false;
    if (this.fields.locked) {
      this.say(lockedWhy(this.labels.entry(this.number)) ||
        "These labels are a list; replace it by boundaries first (beside the video).", "wrong");
      return false;
    }
    return this.labels.names(this.number).length > 0 || this.takeAction();
  }

  setWhole() {
    if (!this.takesBoundaries()) return;
    if (boundariesOf(this.labels.entry(this.number))?.length) {
      this.say("Phase 0 begins with the video. Remove the boundaries if all of it is phase 0.", "wrong");
      return;
    }
    this.edit((entry) => withBoundaries(entry, () => {}, true));
    this.say(`all of the video: ${phaseName(0, this.labels.names(this.number))}`);
  }

  setBoundary(phase, frame) {
    if (!this.takesBoundaries()) return;
    const names = this.labels.names(this.number);
    if (frame !== null && phase >= names.length) {
      this.say(`${this.labels.action(this.number)} has the phases 0 to ${names.length - 1}.`, "wrong");
      return;
    }
    this.edit((entry) => withBoundaries(entry, (boundaries) => {
      while (boundaries.length < phase) boundaries.push(null);
      boundaries[phase - 1] = frame;
    }, this.labels.wasWhole(this.number)));
    if (frame !== null) this.say(`phase ${phaseName(phase, names)} begins at frame ${frame}`);
  }

  // A video without an action gets the one chosen last, or the only one there is.
  takeAction() {
    const known = Object.keys(this.labels.classes);
    const action = known.includes(this.labels.lastAction) ? this.labels.lastAction
      : known.length === 1 ? known[0] : null;
    if (!action || this.labels.entry(this.number).action !== undefined) {
      this.say(known.length ? "Choose the action first: its phases have the numbers."
        : "Add an action with its phases first.", "wrong");
      if (!known.length) this.fields.chooseAction("\n new");
      return false;
    }
    this.labels.edit(this.number, (entry) => { entry.action = action; });
    return true;
  }

  removeBoundary() {
    if (this.ready && this.fields.locked) {
      this.takesBoundaries(); // says why
      return;
    }
    const boundaries = boundariesOf(this.labels.entry(this.number)) ?? [];
    let found = null;
    boundaries.forEach((frame, place) => {
      if (frame !== null && frame <= this.frame && (found === null || frame >= boundaries[found]))
        found = place;
    });
    if (found === null && this.labels.entry(this.number).boundaries?.length === 0) {
      this.edit((entry) => withBoundaries(entry, () => {}));
      this.say("removed: all of the video is unlabelled");
    } else if (found === null) this.say("There is no boundary here or before.", "wrong");
    else {
      this.setBoundary(found + 1, null);
      this.say(`removed: the beginning of ${phaseName(found + 1, this.labels.names(this.number))}`);
    }
  }

  drag(phase, frame, done) {
    this.preview = phase === null || done ? null : { phase, frame };
    if (done) this.setBoundary(phase, frame);
    if (phase === null) this.drawTimeline();
    else this.go(frame);
  }

  trimHere(side) {
    const [first, last] = this.labels.entry(this.number).trim ?? [0, this.frames - 1];
    const here = this.frame;
    const done = side === 0 ? this.setTrim(here, last < here ? this.frames - 1 : last)
      : this.setTrim(first > here ? 0 : first, here);
    if (done) this.say(side === 0 ? `trim: first used frame ${here}` : `trim: last used frame ${here}`);
  }

  setTrim(first, last) {
    return this.edit((entry) => {
      if (first === 0 && last === this.frames - 1) delete entry.trim;
      else entry.trim = [first, last];
    });
  }

  toBoundary(step) {
    const entry = this.labels.entry(this.number);
    const places = [...(boundariesOf(entry) ?? []), ...(entry.trim ?? [])]
      .filter((frame) => frame !== null && (frame - this.frame) * step > 0 && frame < this.frames);
    const edge = step > 0 ? this.frames - 1 : 0;
    this.go(places.length ? (step > 0 ? Math.min(...places) : Math.max(...places)) : edge);
  }

  async travel(step) {
    const number = step < 0 ? this.labels.undo() : this.labels.redo();
    if (number === null) this.say(step < 0 ? "Nothing to undo." : "Nothing to redo.");
    else {
      if (number !== this.number) await this.open(number);
      this.say(step < 0 ? "undone" : "done again");
    }
  }

  async save() {
    if (this.saving) return;
    document.activeElement?.blur(); // takes over what is being typed
    if (!this.labels.dirty) {
      this.say("Everything is saved.");
      return;
    }
    const wrong = [...this.labels.edited].find((number) => this.problemsOf(number).size);
    if (wrong !== undefined) {
      if (wrong !== this.number) await this.open(wrong);
      const [[phase, why]] = this.problemsOf(wrong);
      this.say(`Not saved: ${this.videos[wrong]}, phase ${phase}: ${why}.`, "wrong");
      return;
    }
    this.saving = true;
    const request = structuredClone(this.labels.request());
    try {
      const { version, backup } = await postJson("save", request);
      this.labels.saveDone(request, version);
      for (const number of Object.keys(request.entries))
        if (this.facts[number]) this.facts[number].problems = [];
      const kept = backup ? ` The file before this start is ${backup}.` : "";
      this.say(`Saved. Before training, run prepare again.${kept}`, "right");
    } catch (error) {
      this.refused(error);
    }
    this.saving = false;
    this.drawLabels();
  }

  refused(error) {
    const { problems = {} } = error.content ?? {};
    for (const [name, texts] of Object.entries(problems)) {
      const number = this.videos.indexOf(name);
      if (number >= 0 && this.facts[number]) this.facts[number].problems = texts;
    }
    const first = Object.keys(problems)[0];
    const text = first ? `${first}: ${problems[first][0]}` : problems[""]?.[0] ?? error.message;
    this.say(`Not saved: ${text}`, "wrong");
    const number = this.videos.indexOf(first);
    if (number >= 0 && number !== this.number) this.open(number);
  }

  problemsOf(number) {
    return boundaryProblems(this.labels.entry(number).boundaries ?? [], this.labels.names(number),
      this.facts[number]?.frames);
  }

  drawLabels() {
    this.drawFields();
    this.list.draw();
    const unsaved = this.labels.edited.size;
    const { dirty } = this.labels;
    get("save").textContent = !dirty ? "Saved" : unsaved > 1 ? `Save ${unsaved} videos` : "Save";
    get("save").disabled = Boolean(this.readOnly);
    document.title = `${dirty ? "● " : ""}${get("title").textContent}: labels`;
    document.body.classList.toggle("dirty", dirty);
    get("undo").disabled = !this.labels.past.length;
    get("redo").disabled = !this.labels.future.length;
    const report = JSON.stringify({ videos: [...this.labels.edited], classes: this.labels.classesEdited });
    if (report !== this.reported) {
      this.reported = report;
      tab.count += 1; // requests may overtake each other
      postJson("unsaved", { ...tab, ...JSON.parse(report) })
        .catch((error) => this.say(error.message, "wrong"));
    }
  }

  drawFields() {
    if (!this.ready) return;
    this.fields.draw();
    const problems = this.facts[this.number].problems ?? [];
    get("problems").hidden = !problems.length;
    get("problems").replaceChildren(...problems.map((text) =>
      Object.assign(document.createElement("li"), { textContent: text })));
    this.drawFrame();
  }

  drawFrame() {
    if (!this.ready) return;
    const { frame, frames, fps } = this;
    const names = this.labels.names(this.number);
    const phase = phaseOf(this.labels.entry(this.number), frame, frames);
    get("slider").value = frame;
    get("slider").setAttribute("aria-valuetext", `frame ${frame}, ${phaseName(phase, names)}`);
    const [number, seconds, word] = ["b", "span", "span"].map((tag) => document.createElement(tag));
    number.textContent = `frame ${frame}`;
    seconds.textContent = ` of ${frames} · ${(frame / fps).toFixed(2)} s of ${(frames / fps).toFixed(2)} s · ${fps.toFixed(2)} frames/s · `;
    word.className = "swatch";
    if (phase >= 0) word.dataset.phase = phase % 8;
    word.textContent = phaseName(phase, names);
    get("place").replaceChildren(number, seconds, word);
    this.drawTimeline();
  }

  drawTimeline() {
    let entry = this.labels.entry(this.number);
    if (this.preview) {
      entry = structuredClone(entry);
      withBoundaries(entry, (list) => { list[this.preview.phase - 1] = this.preview.frame; });
    }
    this.timeline.show({ entry, names: this.labels.names(this.number), frames: this.frames,
      frame: this.frame, locked: this.fields.locked });
  }

  // Ask for facts of the videos that the server has looked into since.
  async poll(failed = false) {
    try {
      const { facts, count, of } = await getJson(`known/${this.known}`);
      this.known = count;
      for (const one of facts) this.learn(one);
      if (facts.length) this.list.draw();
      if (count === of) return;
      failed = false;
    } catch (error) {
      if (!failed) this.say(error.message, "wrong"); // once, not at every try
      failed = true;
    }
    setTimeout(() => this.poll(failed), POLL);
  }
}

function listen(page) {
  const { playback } = page;
  const step = (frames) => page.go(page.frame + frames);
  const faster = (by) => {
    const speed = get("speed");
    speed.selectedIndex = Math.max(0, Math.min(speed.options.length - 1, speed.selectedIndex + by));
    playback.setSpeed(Number(speed.value));
  };
  const clicks = {
    undo: () => page.travel(-1), redo: () => page.travel(1), save: () => page.save(),
    "help-button": () => get("help").showModal(), play: () => playback.toggle(),
    "previous-video": () => page.travelList(-1), "next-video": () => page.travelList(1),
    "to-previous": () => page.toBoundary(-1), "to-next": () => page.toBoundary(1),
    back: () => step(-1), "back-ten": () => step(-10), forward: () => step(1), "forward-ten": () => step(10),
  };
  for (const [id, act] of Object.entries(clicks))
    get(id).addEventListener("click", (event) => {
      if (event.detail) get(id).blur(); // space plays again after a click
      act();
    });
  get("slider").addEventListener("input", (event) => page.go(Number(event.target.value)));
  get("speed").addEventListener("change", (event) => {
    playback.setSpeed(Number(event.target.value));
    event.target.blur();
  });
  const keys = {
    ArrowLeft: (event) => step(event.shiftKey ? -10 : -1),
    ArrowRight: (event) => step(event.shiftKey ? 10 : 1),
    ArrowUp: () => page.toBoundary(-1), ArrowDown: () => page.toBoundary(1),
    e: () => page.toBoundary(1), E: () => page.toBoundary(-1),
    Home: () => page.go(0), End: () => page.go(page.frames - 1),
    " ": () => playback.toggle(),
    Backspace: () => page.removeBoundary(), Delete: () => page.removeBoundary(),
    u: clicks.undo, z: clicks.redo, s: clicks.save, n: clicks["next-video"],
    p: clicks["previous-video"], "?": clicks["help-button"],
    "[": () => page.trimHere(0), "]": () => page.trimHere(1),
    "+": () => faster(1), "-": () => faster(-1),
  };
  keys[0] = () => page.setWhole();
  for (let phase = 1; phase <= 9; phase += 1)
    keys[phase] = () => page.setBoundary(phase, page.frame);
  document.addEventListener("keydown", (event) => {
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key.toLowerCase() === "s") {
      event.preventDefault();
      page.save();
      return;
    }
    const { target } = event;
    const typing = target.matches("input:not([type=range]), select, textarea");
    if (typing && (event.key === "Escape" || (event.key === "Enter" && target.matches("#fields table input, fieldset input, #remark"))))
      target.blur();
    if (typing || control || event.altKey || get("help").open) return;
    if (target.matches("button") && [" ", "Enter"].includes(event.key)) return;
    const act = keys[event.key];
    if (!act || (!page.ready && !["n", "p", "?", "s", "u", "z"].includes(event.key))) return;
    event.preventDefault();
    act(event);
  });
  addEventListener("beforeunload", (event) => {
    if (!page.labels.dirty) return;
    event.preventDefault();
    event.returnValue = "";
  });
}

async function start() {
  let state;
  try {
    state = await getJson("state");
  } catch (error) {
    get("message").textContent = error.message;
    get("message").className = "wrong";
    return;
  }
  const page = new Page(state);
  listen(page);
  page.drawLabels();
  page.list.draw();
  const asked = Number(location.hash.slice(1));
  await page.open(asked < state.videos.length ? asked : 0);
  await page.poll();
}

start();
