// The timeline: phases in colour and by name, boundaries to drag, the cursor.

import { boundariesOf, NOT_USED, segments } from "./labels.js";

const HEIGHT = 62;
const BAR = { top: 16, height: 28 };
const NEAR = 8; // pixels around a boundary that grab it

export function phaseName(phase, names) {
  if (phase < 0) return phase === NOT_USED ? "not used" : "unlabelled";
  return `${phase} ${names[phase] ?? "?"}`;
}

export class Timeline {
  // moved(frame): the cursor was moved; dragged(phase, frame, done): a boundary.
  constructor(canvas, moved, dragged) {
    this.canvas = canvas;
    this.moved = moved;
    this.dragged = dragged;
    this.view = null;
    this.held = null;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", (event) => this.release(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  // view: {entry, names, frames, frame}
  show(view) {
    this.view = view;
    this.draw();
  }

  x(frame) {
    return (frame / this.view.frames) * this.canvas.clientWidth;
  }

  frameAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    return Math.max(0, Math.min(this.view.frames - 1, Math.floor(share * this.view.frames)));
  }

  boundaryAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left;
    let found = null;
    if (this.view.locked) return null;
    (boundariesOf(this.view.entry) ?? []).forEach((frame, place) => {
      if (frame === null) return;
      const away = Math.abs(this.x(frame) - x);
      if (away <= NEAR && (!found || away <= found.away)) found = { phase: place + 1, away };
    });
    return found?.phase ?? null;
  }

  press(event) {
    if (!this.view || event.button > 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.held = { phase: this.boundaryAt(event), from: event.clientX, dragging: false };
    if (this.held.phase === null) this.moved(this.frameAt(event));
  }

  move(event) {
    if (!this.view) return;
    if (!this.held) {
      this.canvas.style.cursor = this.boundaryAt(event) === null ? "pointer" : "ew-resize";
      return;
    }
    if (this.held.phase === null) this.moved(this.frameAt(event));
    else if (this.held.dragging || Math.abs(event.clientX - this.held.from) > 3) {
      this.held.dragging = true;
      this.dragged(this.held.phase, this.frameAt(event), false);
    }
  }

  release(event) {
    if (!this.held) return;
    const { phase, dragging } = this.held;
    this.held = null;
    if (phase === null) return;
    if (!dragging) this.moved(boundariesOf(this.view.entry)[phase - 1]);
    else if (event.type === "pointerup") this.dragged(phase, this.frameAt(event), true);
    else this.dragged(null);
  }

  draw() {
    const { canvas } = this;
    const width = canvas.clientWidth;
    if (!width) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(HEIGHT * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.clearRect(0, 0, width, HEIGHT);
    if (!this.view) return;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    context.font = "13px system-ui, sans-serif";
    context.textBaseline = "middle";
    this.drawPhases(context, colour);
    this.drawMarks(context, colour);
  }

  drawPhases(context, colour) {
    const { entry, names, frames } = this.view;
    const middle = BAR.top + BAR.height / 2;
    for (const { phase, first, stop } of segments(entry, frames)) {
      const [left, right] = [this.x(first), this.x(stop)];
      context.fillStyle = colour(phase < 0 ? "--raised" : `--group-${phase % 8}`);
      context.fillRect(left, BAR.top, right - left, BAR.height);
      context.strokeStyle = colour("--line");
      if (phase < 0) context.strokeRect(left + 0.5, BAR.top + 0.5, right - left - 1, BAR.height - 1);
      if (phase === NOT_USED) this.hatch(context, left, right, colour("--quiet"));
      let name = phaseName(phase, names);
      const room = right - left - 8;
      if (context.measureText(name).width > room) name = phase < 0 ? "" : `${phase}`;
      if (context.measureText(name).width > room + 6) continue;
      context.fillStyle = colour(phase < 0 ? "--ink" : "--paper");
      context.textAlign = "center";
      context.fillText(name, (left + right) / 2, middle);
    }
  }

  hatch(context, left, right, line) {
    context.save();
    context.beginPath();
    context.rect(left, BAR.top, right - left, BAR.height);
    context.clip();
    context.strokeStyle = line;
    context.lineWidth = 1;
    for (let x = left - BAR.height; x < right; x += 7) {
      context.beginPath();
      context.moveTo(x, BAR.top + BAR.height);
      context.lineTo(x + BAR.height, BAR.top);
      context.stroke();
    }
    context.restore();
  }

  drawMarks(context, colour) {
    const { entry, frames, frame } = this.view;
    const width = this.canvas.clientWidth;
    context.textAlign = "center";
    let free = -Infinity;
    (boundariesOf(entry) ?? []).forEach((first, place) => {
      if (first === null) return;
      const x = Math.min(this.x(first), width - 1);
      context.fillStyle = colour("--ink");
      context.fillRect(x - 1, BAR.top - 4, 2, BAR.height + 8);
      context.beginPath();
      context.moveTo(x - 6, BAR.top + BAR.height + 11);
      context.lineTo(x + 6, BAR.top + BAR.height + 11);
      context.lineTo(x, BAR.top + BAR.height + 2);
      context.fill();
      const label = `${place + 1}`;
      const at = Math.max(6, Math.min(width - 6, x));
      if (at - free > 11) context.fillText(label, at, 6);
      free = at;
    });
    const x = this.x(frame + 0.5);
    context.strokeStyle = colour("--paper");
    context.lineWidth = 5;
    context.strokeRect(x - 1, BAR.top - 2, 2, BAR.height + 4);
    context.fillStyle = colour("--accent");
    context.fillRect(x - 1.5, BAR.top - 6, 3, BAR.height + 12);
    if (frames > 0) this.canvas.setAttribute("aria-label", this.words());
  }

  words() {
    const { entry, names, frames } = this.view;
    const runs = segments(entry, frames).map(({ phase, first, stop }) =>
      `${phaseName(phase, names)}: frames ${first} to ${stop - 1}`);
    return `Phases over the video: ${runs.join("; ")}`;
  }
}
