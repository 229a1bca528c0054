// The labels while they are edited: entries of the videos, phases of the actions, undo and redo.

const clone = (value) => (value === undefined ? undefined : structuredClone(value));
const text = (value) => JSON.stringify(value ?? null);
const isEmpty = (entry) => !entry || Object.keys(entry).length === 0;

export class Labels {
  constructor(state, changed) {
    this.changed = changed;
    this.past = [];
    this.future = [];
    this.lastAction = null;
    this.reset(state);
  }

  reset(state) {
    this.version = state.version;
    this.classes = clone(state.classes);
    this.entries = clone(state.entries);
    this.saved = { classes: text(state.classes), entries: state.entries.map(text) };
    this.edited = new Set();
  }

  entry(number) {
    return this.entries[number] ?? {};
  }

  action(number) {
    return this.entry(number).action ?? "all";
  }

  actionShown(number) {
    const action = this.action(number);
    return action === "all" && !this.classes.all ? "no action" : action;
  }

  names(number) {
    return this.classes[this.action(number)] ?? [];
  }

  // An entry in frames, from the server's look into the video, where the file has seconds.
  take(number, entry) {
    if (this.edited.has(number)) return;
    this.entries[number] = entry;
    this.saved.entries[number] = text(entry);
  }

  // One step of undo. `change` gets copies of the video's entry and of the classes, and alters them.
  edit(number, change) {
    const before = { entry: this.entries[number], classes: this.classes };
    const entry = clone(before.entry) ?? {};
    const classes = clone(before.classes);
    change(entry, classes);
    const after = { entry: isEmpty(entry) ? null : entry, classes };
    if (text(before) === text(after)) return;
    this.past.push({ number, before, after });
    this.future = [];
    this.apply(number, after);
  }

  apply(number, { entry, classes }) {
    this.entries[number] = entry;
    this.classes = classes;
    this.mark(number);
    this.changed(number);
  }

  mark(number) {
    if (text(this.entries[number]) === this.saved.entries[number]) this.edited.delete(number);
    else this.edited.add(number);
  }

  // The video that was changed back, or null.
  undo() {
    return this.step(this.past, this.future, "before");
  }

  redo() {
    return this.step(this.future, this.past, "after");
  }

  step(from, to, side) {
    const one = from.pop();
    if (!one) return null;
    to.push(one);
    this.apply(one.number, one[side]);
    return one.number;
  }

  // Whether all of the video was phase 0 when it last had no boundary.
  wasWhole(number) {
    const before = this.past.filter((one) => one.number === number).map((one) => one.before.entry);
    const entries = [...before, this.entry(number)].map((entry) => boundariesOf(entry ?? {}));
    return Boolean(entries.findLast((boundaries) => !boundaries?.length));
  }

  get classesEdited() {
    return text(this.classes) !== this.saved.classes;
  }

  get dirty() {
    return this.edited.size > 0 || this.classesEdited;
  }

  // What a save sends: the entries that were edited, null for one to be removed.
  request() {
    const entries = {};
    for (const number of this.edited) entries[number] = this.entries[number];
    return { version: this.version, classes: this.classes, entries };
  }

  // Take over what a request has saved; changes made since then stay unsaved.
  saveDone(request, version) {
    this.version = version;
    this.saved.classes = text(request.classes);
    for (const [number, entry] of Object.entries(request.entries)) {
      this.saved.entries[number] = text(entry);
      this.mark(Number(number));
    }
  }
}

// Why the page does not change the labels of a video; empty where it does.
export function lockedWhy(entry) {
  if (entry.labels) {
    return `labels.json has labels of class sets here (${Object.keys(entry.labels).join(", ")}). ` +
      "They are shown, and kept as they are: edit the file itself.";
  }
  if (entry.unit === "seconds")
    return "The times are in seconds and do not fit the video: correct them in labels.json.";
  return "";
}

const MOST_FRAMES = 1e7; // of wrong segments
const lists = new WeakMap(); // segments -> phases

// The phase of each frame where an entry has a list of them, or segments; else undefined. After
// the last segment the list ends.
export function listOf(entry) {
  const { segments: runs } = entry;
  if (!runs) return entry.phases;
  if (!lists.has(runs)) {
    const end = Math.max(0, ...runs.map(([, stop]) => stop));
    const list = Array(Math.min(end, MOST_FRAMES)).fill(-1);
    for (const [start, stop, phase] of runs) list.fill(phase, start, stop);
    lists.set(runs, list);
  }
  return lists.get(runs);
}

// First frames of the phases 1, 2, ...; null where one is not set. Undefined: no boundaries.
export function boundariesOf(entry) {
  const list = listOf(entry);
  return entry.boundaries ?? (list && fromPhases(list)?.boundaries);
}

// Boundaries and unlabelled_from of a list of phases; null where they cannot say the same.
export function fromPhases(phases) {
  let end = phases.length;
  while (end > 0 && phases[end - 1] === -1) end -= 1;
  const boundaries = [];
  for (let frame = 0, last = 0; frame < end; frame += 1) {
    if (phases[frame] < last) return null;
    for (; last < phases[frame]; last += 1) boundaries.push(frame);
  }
  if (end === 0) return null;
  return end === phases.length ? { boundaries } : { boundaries, unlabelled_from: end };
}

// First frame of the end that has no labels; undefined where there is no such end.
function unlabelledFrom(entry) {
  const list = listOf(entry);
  const ends = [entry.unlabelled_from, list && fromPhases(list)?.unlabelled_from,
    entry.segments && list?.length].filter((frame) => frame !== undefined);
  return ends.length ? Math.min(...ends) : undefined;
}

// Alter the boundaries of an entry, which may hold phases or segments so far. Where none is left,
// all of the video is phase 0 if `whole`, else unlabelled.
export function withBoundaries(entry, change, whole = false) {
  const list = listOf(entry);
  if (list) {
    const end = unlabelledFrom(entry);
    Object.assign(entry, fromPhases(list));
    if (end !== undefined) entry.unlabelled_from = end;
    delete entry.phases;
    delete entry.segments;
  }
  const boundaries = entry.boundaries ?? [];
  change(boundaries);
  while (boundaries.length && boundaries.at(-1) === null) boundaries.pop();
  if (boundaries.length || whole) entry.boundaries = boundaries;
  else {
    delete entry.boundaries;
    delete entry.unlabelled_from; // it has no meaning alone
  }
}

// What is wrong with boundaries: number of the phase -> why.
export function boundaryProblems(boundaries, names, frames) {
  const problems = new Map();
  let highest = -1;
  let before = 0;
  boundaries.forEach((frame, place) => {
    const phase = place + 1;
    if (frame === null) {
      problems.set(phase, "not set, but a later phase is: set it, or skip it");
      return;
    }
    if (phase >= names.length) problems.set(phase, "the action has no such phase");
    else if (!Number.isInteger(frame) || frame < 0) problems.set(phase, "must be a frame number");
    else if (frames !== undefined && frame > frames)
      problems.set(phase, `past the end: at most ${frames}, for a phase that is never reached`);
    else if (frame < highest)
      problems.set(phase, `begins before phase ${before} (${names[before]}) at ${highest}`);
    if (frame > highest) [highest, before] = [frame, phase];
  });
  return problems;
}

export const UNLABELLED = -1;
export const NOT_USED = -2; // outside trim

const known = new WeakMap(); // entries are never altered, only replaced

// Runs of one phase over a video: {phase, first, stop}.
export function segments(entry, frames) {
  const found = known.get(entry);
  if (found?.frames === frames) return found.runs;
  const boundaries = boundariesOf(entry);
  const list = listOf(entry);
  const phaseAt = boundaries ? byBoundaries(boundaries) : (frame) => list?.[frame] ?? -1;
  const [first, last] = entry.trim ?? [0, frames - 1];
  const end = unlabelledFrom(entry) ?? frames;
  const runs = [];
  for (let frame = 0; frame < frames; frame += 1) {
    let phase = NOT_USED;
    if (frame >= first && frame <= last) phase = frame < end ? phaseAt(frame) : UNLABELLED;
    if (runs.length && runs.at(-1).phase === phase) runs.at(-1).stop = frame + 1;
    else runs.push({ phase, first: frame, stop: frame + 1 });
  }
  known.set(entry, { frames, runs });
  return runs;
}

// The last phase that has begun. In order, it is the number of boundaries up to the frame.
function byBoundaries(boundaries) {
  return (frame) => {
    let phase = 0;
    for (let place = 0; place < boundaries.length; place += 1)
      if (boundaries[place] !== null && boundaries[place] <= frame) phase = place + 1;
    return phase;
  };
}

export function phaseOf(entry, frame, frames) {
  return segments(entry, frames).find(({ stop }) => frame < stop)?.phase ?? UNLABELLED;
}
