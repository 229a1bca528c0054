// The list of videos: search, what to show, and how far each one is.

import { boundariesOf } from "./labels.js";

const SHOWN = 400; // entries in the page at once; the search finds the others

export class VideoList {
  // labels: Labels; facts, problems: arrays over the videos; choose(number).
  constructor(names, labels, facts, choose) {
    this.names = names;
    this.labels = labels;
    this.facts = facts;
    this.choose = choose;
    this.current = null;
    this.get = (id) => document.getElementById(id);
    this.get("search").addEventListener("input", () => this.draw());
    this.get("show").addEventListener("change", () => this.draw());
    this.get("search").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !this.numbers.length) return;
      this.choose(this.numbers[0]);
      event.target.blur();
    });
  }

  // {word, kind}: how far the labels of a video are.
  state(number) {
    const facts = this.facts[number];
    if (facts?.reason) return { word: "left out", kind: "problem" };
    if (facts?.problems?.length) return { word: "does not fit", kind: "problem" };
    const entry = this.labels.entry(number);
    if (entry.phases || entry.segments || Object.keys(entry.labels ?? {}).length)
      return { word: "labelled", kind: "done" };
    const wanted = this.labels.names(number).length - 1;
    const set = (boundariesOf(entry) ?? []).filter((frame) => frame !== null).length;
    if (entry.boundaries && (set >= wanted || !entry.boundaries.length)) return { word: "labelled", kind: "done" };
    if (set) return { word: `${set} of ${wanted}`, kind: "partly" };
    return { word: "no labels", kind: "open" };
  }

  matches(number) {
    const entry = this.labels.entry(number);
    const words = [this.names[number], this.labels.action(number), entry.remark ?? ""];
    const wanted = this.get("search").value.trim().toLowerCase();
    if (wanted && !words.join("\n").toLowerCase().includes(wanted)) return false;
    const { kind } = this.state(number);
    switch (this.get("show").value) {
      case "open": return kind === "open" || kind === "partly";
      case "train": return (entry.split ?? "train") === "train";
      case "val": case "test": return entry.split === this.get("show").value;
      case "problem": return kind === "problem";
      case "unsaved": return this.labels.edited.has(number);
      default: return true;
    }
  }

  // The video `step` places on in what is shown, from the present one.
  next(step) {
    const later = this.numbers.filter((number) => (number - this.current) * step > 0);
    return step > 0 ? later[0] : later.at(-1);
  }

  show(number) {
    this.current = number;
    this.draw();
    const item = this.get("list").querySelector("[aria-current]");
    const list = this.get("list");
    if (!item) return;
    if (item.offsetTop < list.scrollTop) list.scrollTop = item.offsetTop;
    const below = item.offsetTop + item.offsetHeight - list.clientHeight;
    if (below > list.scrollTop) list.scrollTop = below;
  }

  draw() {
    const all = this.names.map((_, number) => number);
    this.numbers = all.filter((number) => this.matches(number));
    const shown = this.numbers.slice(0, SHOWN);
    this.get("list").replaceChildren(...shown.map((number) => this.item(number)));
    const done = all.filter((number) => this.state(number).kind === "done").length;
    const more = this.numbers.length > SHOWN ? `; the first ${SHOWN} are listed, search for more` : "";
    const found = this.numbers.length === all.length ? "" : `${this.numbers.length} shown, `;
    this.get("count").textContent = `${found}${done} of ${all.length} labelled${more}`;
  }

  item(number) {
    const { word, kind } = this.state(number);
    const entry = this.labels.entry(number);
    const button = document.createElement("button");
    button.className = "video";
    const name = document.createElement("b");
    const unsaved = this.labels.edited.has(number);
    name.textContent = this.names[number];
    const line = document.createElement("span");
    line.className = `state ${kind}`;
    const sign = { done: "✓", partly: "◐", open: "○", problem: "⚠" }[kind];
    const parts = [`${sign} ${word}`, this.labels.actionShown(number), entry.split ?? "train"];
    if (unsaved) parts.unshift("● unsaved");
    line.textContent = parts.join(" · ");
    button.append(name, line);
    const { reason: leftOut, note } = this.facts[number] ?? {};
    const why = leftOut ?? (note && `⚠ damaged: ${note}`);
    if (why) {
      const reason = document.createElement("span");
      reason.className = "reason";
      reason.textContent = why;
      button.append(reason);
    }
    if (number === this.current) button.setAttribute("aria-current", "true");
    button.title = this.names[number];
    button.addEventListener("click", (event) => {
      if (event.detail) button.blur();
      this.choose(number);
    });
    const item = document.createElement("li");
    item.append(button);
    return item;
  }
}
