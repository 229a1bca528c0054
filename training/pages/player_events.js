// Events of a pair: marks along the slider, and the table of where they are found in b.

// Width of a slider's handle in pixels: its middle stays half of it away from the edges.
const THUMB = 16;
// Titles of the columns; a narrow screen leaves out the first part.
const TITLES = [["", "event"], ["frame in b, ", "aligned"], ["frame in b, ", "labelled"],
  ["", "error in frames"], ["error ", "without alignment"]];
const COUNTED = "Frames are counted from 0.";

class Events {
  constructor(section, go) {
    this.section = section;
    this.go = go;
    this.above = document.getElementById("player-ticks-a");
    this.below = document.getElementById("player-ticks-b");
    this.pair = null;
    onChange(this.above, () => this.drawTicks());
  }

  setPair(pair) {
    this.pair = pair;
    const { a } = pair;
    const beginnings = a.boundaries().filter((row) => a.phases[row] >= 0)
      .map((row) => ({ row, phase: a.phases[row] }));
    this.events = (pair.events.length ? pair.events : beginnings)
      .map((event, k) => ({ ...event, number: k + 1, name: a.phaseName(event.phase) }))
      .sort((p, q) => p.row - q.row);
    this.drawTicks();
    this.drawTable();
  }

  next(row) {
    if (!this.events.length) return row;
    return (this.events.find((event) => event.row > row) ?? this.events[0]).row;
  }

  // Above: where events begin in a. Below: the row of a at which b shows them.
  drawTicks() {
    if (!this.pair) return;
    const { b, matched } = this.pair;
    const above = this.events.map(({ row, number, name }) => ({ row, number, name }));
    const below = this.pair.events.length
      ? this.events.filter((event) => event.true !== null).map((event) => ({
        row: firstNearest(matched, b.rowOf(event.true)), number: event.number,
      })) : [];
    this.drawLine(this.above, above, "▼");
    this.drawLine(this.below, below.filter(({ row }) => row !== null), "▲");
  }

  // Marks with names in two or three lanes; with numbers alone where names do not fit.
  drawLine(line, ticks, symbol) {
    const width = line.clientWidth;
    const most = window.innerWidth < 640 ? 2 : 3;
    const last = Math.max(this.pair.a.rows - 1, 1);
    for (const named of [true, false]) {
      const lanes = [];
      const spans = ticks.map(({ row, number, name }) => {
        const span = document.createElement("span");
        span.textContent = `${symbol}${number}${named && name ? ` ${name}` : ""}`;
        line.append(span);
        return { span, x: THUMB / 2 + (row / last) * (width - THUMB) };
      });
      line.replaceChildren(...spans.map(({ span }) => span));
      for (const one of spans) {
        const size = one.span.offsetWidth;
        const right = one.x + size > width;
        const begin = right ? one.x - size : one.x;
        let lane = lanes.findIndex((end) => end + 6 <= begin);
        if (lane < 0) lane = lanes.push(0) - 1;
        lanes[lane] = begin + size;
        one.span.classList.toggle("right", right);
        Object.assign(one, { lane });
      }
      if (named && lanes.length > most) continue;
      line.style.height = `${lanes.length * 1.2}rem`;
      for (const { span, x, lane } of spans) {
        span.style.left = `${x}px`;
        span.style[line === this.above ? "bottom" : "top"] = `${lane * 1.2}rem`;
      }
      return;
    }
  }

  drawTable() {
    const { a, b, events } = this.pair;
    const sentence = document.createElement("p");
    const note = document.createElement("p");
    note.className = "quiet";
    if (!events.length) {
      const without = [a, b].filter((video) => !video.phases).map((video) => video.id);
      sentence.textContent = without.length
        ? `No phase labels: ${without.join(", ")}. Events and their errors need the labels of ` +
          "both videos."
        : "The labels of these two videos share no event.";
      note.textContent = COUNTED;
      this.section.replaceChildren(sentence, note);
      return;
    }
    sentence.textContent = meanErrors(events);
    const table = document.createElement("table");
    table.createTHead().insertRow().append(...TITLES.map(([wide, text]) => {
      const cell = document.createElement("th");
      const first = document.createElement("span");
      cell.scope = "col";
      first.className = "player-wide";
      first.textContent = wide;
      cell.append(first, text);
      return cell;
    }));
    const body = table.createTBody();
    for (const event of this.events) {
      const line = body.insertRow();
      line.dataset.row = event.row;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${event.number} ${event.name}`;
      button.title = `jump to frame ${a.frames[event.row]} of a`;
      button.addEventListener("click", () => this.go(event.row));
      line.insertCell().append(button);
      line.insertCell().textContent = event.carried ?? "outside";
      line.insertCell().textContent = event.true ?? "–";
      line.insertCell().append(...difference(event.error, event.seconds));
      line.insertCell().append(...difference(event.even_error, event.even_seconds));
    }
    const scroll = document.createElement("div");
    scroll.className = "scroll";
    scroll.append(table);
    note.textContent = "▼ an event in a; ▲ the moment at which b shows the same event, by its " +
      `labels. Error: frame in b, aligned, less frame in b, labelled. ${COUNTED}`;
    this.section.replaceChildren(sentence, scroll, note);
  }

  show(row) {
    for (const line of this.section.querySelectorAll("tbody tr")) {
      line.classList.toggle("now", Number(line.dataset.row) === row);
    }
  }
}

// First row of a that is matched to the row of b nearest to `wanted`; null where none is matched.
function firstNearest(matched, wanted) {
  let best = null;
  matched.forEach((row, k) => {
    if (row < 0) return;
    if (best === null || Math.abs(row - wanted) < Math.abs(matched[best] - wanted)) best = k;
  });
  return best;
}

// Frames, and the same in seconds, which a narrow screen breaks onto the next line.
function difference(frames, time) {
  if (frames === null || frames === undefined) return ["–"];
  const sign = frames > 0 ? "+" : frames < 0 ? "−" : "";
  const seconds = document.createElement("span");
  seconds.className = "player-seconds";
  seconds.textContent = `(${Math.abs(time).toFixed(2)} s)`;
  return [`${sign}${Math.abs(frames)} `, seconds];
}

// Both means are over the same events: those that the alignment carries over.
function meanErrors(events) {
  const inside = events.filter((event) => Number.isFinite(event.error));
  const outside = events.length - inside.length;
  const none = outside === 1 ? "1 event lies" : `${outside} events lie`;
  if (!inside.length) return `No error: ${none} outside the alignment.`;
  const mean = (key) =>
    inside.reduce((sum, event) => sum + Math.abs(event[key]), 0) / inside.length;
  const text = (frames, time) =>
    `${mean(frames).toFixed(1)} frames (${mean(time).toFixed(2)} s)`;
  const count = inside.length === 1 ? "1 event" : `${inside.length} events`;
  return `Mean absolute error over ${count}: ${text("error", "seconds")} with the alignment, ` +
    `${text("even_error", "even_seconds")} without.` + (outside ? ` Left out: ${none} outside the alignment.` : "");
}
