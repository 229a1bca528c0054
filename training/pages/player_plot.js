// The embeddings of all frames in two dimensions: coloured by phase, and by video.

const PLOT = { margin: 16, highest: 460, marker: 3.2, outline: 0.5, reach: 14 };

class EmbeddingPlot {
  // group: number of a row's group, -1 for none; names: of the groups, in order.
  // palette: of `groupStyle`. letters: whether the centre of each group has its letter.
  constructor(canvas, legend, { group, palette, letters }, hover) {
    Object.assign(this, { canvas, legend, group, palette, letters, hover });
    this.videos = [];
    this.names = [];
    this.marked = [];
    this.base = null;
    onChange(canvas, () => this.draw());
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    // A finger that is lifted leaves at once; what it tapped stays shown.
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch") this.hover(null);
    });
  }

  setVideos(videos, names) {
    this.videos = videos;
    this.names = names;
    this.letterOf = names.map((_, k) => (this.letters ? letter(k) : ""));
    this.fillLegend();
    this.draw();
  }

  fillLegend() {
    const used = new Set();
    for (const video of this.videos) {
      for (let row = 0; row < video.rows; row++) used.add(this.group(video, row));
    }
    const items = this.names.map((name, k) => [k, name]).filter(([k]) => used.has(k));
    if (used.has(-1)) items.push([-1, "unlabelled"]);
    this.legend.replaceChildren(...items.map(([k, name]) => {
      const item = document.createElement("li");
      const { colour, marker } = groupStyle(k, this.palette);
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      svg.setAttribute("viewBox", "-1.4 -1.4 2.8 2.8");
      svg.setAttribute("aria-hidden", "true");
      path.setAttribute("d", marker);
      path.setAttribute("fill", `var(${colour})`);
      path.setAttribute("stroke", "var(--quiet)");
      path.setAttribute("stroke-width", PLOT.outline / PLOT.marker);
      svg.append(path);
      item.append(svg, k >= 0 && this.letters ? `${letter(k)}: ${name}` : name);
      return item;
    }));
  }

  place(point) {
    const size = [this.width, this.height];
    return point.map((value, axis) => {
      const share = axis ? (1 - value) / 2 : (1 + value) / 2;
      return PLOT.margin + share * (size[axis] - 2 * PLOT.margin);
    });
  }

  draw() {
    this.width = this.canvas.clientWidth;
    if (!this.videos.length || !this.width) return;
    this.height = Math.min(this.width * 0.8, PLOT.highest);
    const context = prepare(this.canvas, this.width, this.height);
    context.globalAlpha = 0.75;
    // Dark colours are seen on a dark page, and light ones on a light page, by their outline.
    context.strokeStyle = colourOf("--quiet");
    context.lineWidth = PLOT.outline;
    const paths = new Map();
    for (const video of this.videos) {
      video.points.forEach((point, row) => {
        const k = this.group(video, row);
        if (!paths.has(k)) paths.set(k, new Path2D());
        const [x, y] = this.place(point);
        const at = new DOMMatrix([PLOT.marker, 0, 0, PLOT.marker, x, y]);
        paths.get(k).addPath(markerPath(k, this.palette), at);
      });
    }
    for (const [k, path] of [...paths].sort((p, q) => p[0] - q[0])) {
      context.fillStyle = colourOf(groupStyle(k, this.palette).colour);
      context.fill(path);
      context.stroke(path);
    }
    context.globalAlpha = 1;
    if (this.letters) this.drawLetters(context);
    this.base = copyOf(this.canvas);
    this.mark(this.marked);
  }

  drawLetters(context) {
    this.names.forEach((_, k) => {
      let [x, y, count] = [0, 0, 0];
      for (const video of this.videos) {
        video.points.forEach((point, row) => {
          if (this.group(video, row) !== k) return;
          x += point[0];
          y += point[1];
          count += 1;
        });
      }
      if (count) label(context, letter(k), ...this.place([x / count, y / count]));
    });
  }

  // Marks frames: [[video, row, letter], ...].
  mark(frames, pointed = null) {
    this.marked = frames;
    if (!this.base) return;
    const context = putBack(this.canvas, this.base);
    const ring = (x, y) => {
      context.beginPath();
      context.arc(x, y, 7, 0, 2 * Math.PI);
      strokeTwice(context, 4.5, 2, colourOf("--ink"), colourOf("--paper"));
    };
    for (const [video, row, name] of frames) {
      const [x, y] = this.place(video.points[row]);
      ring(x, y);
      // a's letter to the upper left and b's to the lower right: the two are often close.
      if (name === "a") label(context, name, x - 13, y - 11);
      else label(context, name, x + 13, y + 11);
    }
    if (pointed) ring(...this.place(pointed.video.points[pointed.row]));
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    let least = PLOT.reach ** 2;
    for (const video of this.videos) {
      video.points.forEach((point, row) => {
        const [px, py] = this.place(point);
        const distance = (px - x) ** 2 + (py - y) ** 2;
        if (distance < least) [least, best] = [distance, { video, row }];
      });
    }
    this.hover(best);
  }
}

const letter = (k) => String.fromCharCode(65 + (k % 26));

const markerPaths = new Map();

function markerPath(k, palette) {
  const { marker } = groupStyle(k, palette);
  if (!markerPaths.has(marker)) markerPaths.set(marker, new Path2D(marker));
  return markerPaths.get(marker);
}

function label(context, text, x, y) {
  context.font = "bold 14px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.lineWidth = 4;
  context.strokeStyle = colourOf("--paper");
  context.strokeText(text, x, y);
  context.fillStyle = colourOf("--ink");
  context.fillText(text, x, y);
}

// Both plots, of the videos that share an action.
class EmbeddingPlots {
  constructor(payload) {
    this.payload = payload;
    this.action = null;
    this.marked = [];
    const hover = (found) => this.hover(found);
    const make = (name, options) => new EmbeddingPlot(
      document.getElementById(`embedding-by-${name}`),
      document.getElementById(`embedding-by-${name}-legend`), options, hover);
    this.byPhase = make("phase", {
      group: (video, row) => (video.phases ? video.phases[row] : -1),
      palette: { name: "phase", colours: PHASE_COLOURS }, letters: true });
    this.byVideo = make("video", {
      group: (video) => this.videos.indexOf(video),
      palette: { name: "group", colours: 8 }, letters: false });
    this.text = document.getElementById("embedding-hover");
    this.hint = this.text.textContent;
  }

  setAction(action) {
    if (action === this.action) return;
    this.action = action;
    this.videos = this.payload.videos.filter((video) => video.action === action);
    const names = this.videos[0].names;
    const phases = Math.max(names.length, ...this.videos.map(
      (video) => (video.phases ? video.phases.reduce((p, q) => Math.max(p, q), -1) + 1 : 0)));
    this.byPhase.setVideos(
      this.videos, Array.from({ length: phases }, (_, k) => this.videos[0].phaseName(k)));
    this.byVideo.setVideos(this.videos, this.videos.map((video) => video.id));
  }

  mark(frames) {
    this.marked = frames;
    this.byPhase.mark(frames);
    this.byVideo.mark(frames);
  }

  hover(found) {
    for (const plot of [this.byPhase, this.byVideo]) plot.mark(this.marked, found);
    this.text.textContent = found
      ? `${found.video.id}, ${found.video.place(found.row)}, ` +
        (found.video.phase(found.row) ?? "unlabelled")
      : this.hint;
  }
}
