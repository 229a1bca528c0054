// The fields of one video: action, split, phases with their first frames, trim, remark.

import { boundariesOf, boundaryProblems, fromPhases, listOf, lockedWhy } from "./labels.js";

const NEW = "\n new"; // no action has this name
const INPUTS = ["action", "split", "remark", "trim-first", "trim-last", "add-phase"];

export class Fields {
  // page: {labels, number, frames, frame, go, setBoundary, edit, say}
  constructor(page) {
    this.page = page;
    this.get = (id) => document.getElementById(id);
    const on = (id, kind, react) => this.get(id).addEventListener(kind, react);
    on("action", "change", (event) => this.chooseAction(event.target.value));
    on("split", "change", (event) => page.edit((entry) => { entry.split = event.target.value; }));
    on("remark", "change", (event) => page.edit((entry) => {
      if (event.target.value.trim()) entry.remark = event.target.value.trim();
      else delete entry.remark;
    }));
    on("new-action", "submit", (event) => this.addAction(event));
    on("new-action-cancel", "click", () => this.cancel());
    on("add-phase", "click", () => this.addPhase());
    on("remove-phase", "click", () => this.removePhase());
    on("drop-phases", "click", () => page.edit((entry) => {
      delete entry.phases;
      delete entry.segments;
      delete entry.unlabelled_from; // it has no meaning alone
    }));
    for (const id of ["trim-first", "trim-last"]) on(id, "change", () => this.typeTrim());
    on("trim-clear", "click", () => page.edit((entry) => { delete entry.trim; }));
  }

  get locked() {
    const entry = this.page.labels.entry(this.page.number);
    const list = listOf(entry);
    return Boolean(lockedWhy(entry)) || (Boolean(list) && fromPhases(list) === null);
  }

  cancel() {
    this.cancelled = true;
    this.get("new-action").hidden = true;
    this.draw();
  }

  draw() {
    const { labels, number, frames } = this.page;
    const entry = labels.entry(number);
    this.drawAction(labels.action(number), Object.keys(labels.classes));
    this.get("split").value = entry.split ?? "train";
    this.drawRows(entry, labels.names(number));
    const [first, last] = entry.trim ?? [0, frames - 1];
    for (const [id, value] of [["trim-first", first], ["trim-last", last]]) {
      this.get(id).value = value;
      this.get(id).max = frames - 1;
    }
    this.get("trim-clear").disabled = !entry.trim;
    for (const id of INPUTS) this.get(id).disabled = Boolean(lockedWhy(entry));
    if (lockedWhy(entry)) this.get("trim-clear").disabled = this.get("remove-phase").disabled = true;
    this.get("remark").value = typeof entry.remark === "string" ? entry.remark : "";
    if (entry.remark !== undefined && typeof entry.remark !== "string")
      this.get("remark").disabled = true;
    this.drawKept(entry);
  }

  drawAction(action, known) {
    const names = known.includes(action) ? known : [action, ...known];
    const option = (value, text) => Object.assign(document.createElement("option"),
      { value, textContent: text });
    const options = names.map((name) =>
      option(name, name === "all" && !known.includes(name) ? "no action" : name));
    this.get("action").replaceChildren(...options, option(NEW, "new action…"));
    this.get("action").value = action;
    if (!known.length && !this.cancelled) this.get("new-action").hidden = false;
  }

  drawRows(entry, names) {
    const boundaries = boundariesOf(entry) ?? [];
    const problems = boundaryProblems(boundaries, names, this.page.frames);
    const rows = names.map((name, phase) =>
      this.row(phase, name, boundaries[phase - 1] ?? null, problems.get(phase)));
    for (const [phase, why] of problems)
      if (phase >= names.length) rows.push(this.row(phase, "?", boundaries[phase - 1], why));
    const focused = document.activeElement?.id;
    this.get("phase-rows").replaceChildren(...rows.flat());
    if (focused?.startsWith("phase-") && this.get(focused)) this.get(focused).focus();
    this.get("remove-phase").disabled = names.length < 2;
    this.get("phases").hidden = !rows.length && entry.action === undefined;
    this.drawNote(entry, names, boundaries);
  }

  drawNote(entry, names, boundaries) {
    const note = this.get("phases-note");
    const text = lockedWhy(entry) || this.noteOf(entry, names, boundaries);
    note.textContent = text;
    note.hidden = !text;
    this.get("drop-phases").hidden = !this.locked || Boolean(lockedWhy(entry));
    this.get("phases").classList.toggle("locked", this.locked);
  }

  noteOf(entry, names, boundaries) {
    if (this.locked) {
      const what = entry.segments ? "segments" : "a list with one phase for each frame";
      return `The labels are ${what}, which boundaries cannot say. They are kept as they are.`;
    }
    if (!names.length) return "No phases yet: choose an action, or add a new one.";
    if (!boundariesOf(entry) || boundaries.length >= names.length - 1) return "";
    const open = names.slice(boundaries.length + 1).join(", ");
    return `Not set: ${open}. Saved like this, ${names[boundaries.length]} lasts up to the end.`;
  }

  row(phase, name, frame, problem) {
    const row = document.createElement("tr");
    const cells = [0, 1, 2, 3].map(() => row.insertCell());
    const begins = phase === 0 ? 0 : frame;
    const key = this.button(`${phase}`, `go to the first frame of ${name}`,
      () => this.page.go(Math.min(begins, this.page.frames - 1)), begins === null);
    key.classList.add("swatch");
    key.dataset.phase = phase % 8;
    cells[0].append(key);
    const input = Object.assign(document.createElement("input"), { value: name, id: `phase-name-${phase}` });
    input.setAttribute("aria-label", `name of phase ${phase}`);
    input.addEventListener("change", () => this.rename(phase, input.value.trim()));
    cells[1].append(input);
    if (phase === 0) cells[2].textContent = "start";
    else cells[2].append(...this.frameField(phase, name, frame, problem));
    cells[3].append(...(phase === 0 ? [] : this.rowButtons(phase, name, frame)));
    if (!problem) return [row];
    const below = document.createElement("tr");
    const cell = below.insertCell();
    cell.colSpan = 4;
    cell.className = "error";
    cell.id = `phase-error-${phase}`;
    cell.textContent = `phase ${phase}: ${problem}`;
    return [row, below];
  }

  frameField(phase, name, frame, problem) {
    const input = Object.assign(document.createElement("input"), {
      type: "number", min: 0, max: this.page.frames, step: 1, value: frame ?? "",
      placeholder: "not set", id: `phase-frame-${phase}`, disabled: this.locked,
    });
    input.setAttribute("aria-label", `first frame of phase ${phase}, ${name}`);
    if (problem) {
      input.setAttribute("aria-invalid", "true");
      input.setAttribute("aria-describedby", `phase-error-${phase}`);
    }
    input.addEventListener("change", () => {
      const value = input.value === "" ? null : Math.round(Number(input.value));
      this.page.setBoundary(phase, value);
      if (value !== null && value < this.page.frames) this.page.go(value);
    });
    const never = frame !== null && frame === this.page.frames;
    if (!never) return [input];
    return [input, Object.assign(document.createElement("span"),
      { className: "quiet", textContent: "never reached" })];
  }

  button(text, title, react, disabled = false) {
    const button = Object.assign(document.createElement("button"), { textContent: text, title, disabled });
    button.setAttribute("aria-label", title);
    button.addEventListener("click", react);
    return button;
  }

  rowButtons(phase, name, frame) {
    const here = this.button("here", `${name} begins at the present frame (${phase})`,
      () => this.page.setBoundary(phase, this.page.frame), this.locked);
    const other = frame === null
      ? this.button("skip", `${name} does not happen in this clip`, () => this.skip(phase), this.locked)
      : this.button("×", `remove the boundary of ${name}`,
        () => this.page.setBoundary(phase, null), this.locked);
    return [here, other];
  }

  // A phase that does not happen begins where the next one does, or at the number of frames.
  skip(phase) {
    const boundaries = boundariesOf(this.page.labels.entry(this.page.number)) ?? [];
    const later = boundaries.slice(phase).find((frame) => frame !== null);
    this.page.setBoundary(phase, later ?? this.page.frames);
  }

  rename(phase, name) {
    const action = this.page.labels.action(this.page.number);
    if (!name) {
      this.page.say("A phase needs a name.", "wrong");
      this.draw();
      return;
    }
    this.page.edit((_, classes) => { classes[action][phase] = name; });
  }

  addPhase() {
    const action = this.page.labels.action(this.page.number);
    const names = this.page.labels.names(this.page.number);
    const phase = names.length;
    this.page.edit((_, classes) => { classes[action] = [...names, `phase ${phase}`]; });
    this.get(`phase-name-${phase}`)?.select();
  }

  removePhase() {
    const { labels } = this.page;
    const action = labels.action(this.page.number);
    const last = labels.names(this.page.number).length - 1;
    const users = labels.entries.filter((entry) => entry && (entry.action ?? "all") === action &&
      ((entry.boundaries?.length ?? 0) >= last || listOf(entry)?.includes(last)));
    if (users.length) {
      const videos = users.length === 1 ? "1 video has" : `${users.length} videos have`;
      this.page.say(`${videos} the phase ${labels.names(this.page.number)[last]}: remove its ` +
        "boundary there first.", "wrong");
      return;
    }
    this.page.edit((_, classes) => { classes[action].pop(); });
  }

  chooseAction(action) {
    if (action === NEW) {
      this.get("new-action").hidden = false;
      this.get("new-action-name").focus();
      return;
    }
    this.get("new-action").hidden = true;
    this.assign(action);
  }

  assign(action) {
    this.page.labels.lastAction = action;
    this.page.edit((entry) => {
      if (action === "all") delete entry.action;
      else entry.action = action;
    });
  }

  addAction(event) {
    event.preventDefault();
    const name = this.get("new-action-name").value.trim();
    const phases = this.get("new-action-phases").value.split(",").map((one) => one.trim())
      .filter(Boolean);
    if (!name || phases.length < 2) {
      this.page.say("An action needs a name and at least two phases.", "wrong");
      return;
    }
    if (this.page.labels.classes[name]) {
      this.page.say(`There is an action ${name} already: choose it above.`, "wrong");
      return;
    }
    this.page.labels.lastAction = name;
    this.page.edit((entry, classes) => {
      classes[name] = phases;
      entry.action = name;
    });
    this.get("new-action").hidden = true;
    event.target.reset();
    document.activeElement?.blur();
  }

  typeTrim() {
    const [first, last] = ["trim-first", "trim-last"].map((id) => Number(this.get(id).value));
    const { frames } = this.page;
    const fits = [first, last].every(Number.isInteger) && first >= 0 && first <= last && last < frames;
    const error = this.get("trim-error");
    error.hidden = fits;
    error.textContent = `expected 0 <= first <= last <= ${frames - 1}; not taken over`;
    for (const id of ["trim-first", "trim-last"])
      this.get(id).setAttribute("aria-invalid", String(!fits));
    if (fits) this.page.setTrim(first, last);
  }

  drawKept(entry) {
    this.get("trim-error").hidden = true;
    const shown = ["action", "split", "boundaries", "phases", "segments", "trim", "remark"];
    if (entry.labels) shown.push("labels");
    const kept = Object.entries(entry).filter(([key]) => !shown.includes(key));
    this.get("kept").hidden = !kept.length;
    this.get("kept").textContent = `Kept as it is: ${kept
      .map(([key, value]) => `${key} ${JSON.stringify(value)}`).join(", ")}`;
  }
}

