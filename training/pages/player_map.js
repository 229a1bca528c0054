// The similarity map: all pairs of frames, the path of the alignment, and the present pair.

const MAP = { left: 52, top: 8, right: 10, bottom: 42, highest: 520 };
const CROSS = "#ff9a6e";

class SimilarityMap {
  constructor(go) {
    this.canvas = document.getElementById("similarity-canvas");
    this.go = go;
    this.pair = null;
    this.row = 0;
    this.base = null;
    document.getElementById("similarity-ramp").style.background = cividisGradient();
    this.listen();
    onChange(this.canvas, () => this.draw());
  }

  setPair(pair) {
    this.pair = pair;
    const { low, high } = pair.similarities();
    document.getElementById("similarity-low").textContent = decimal(low, 2);
    document.getElementById("similarity-high").textContent = decimal(high, 2);
    document.getElementById("similarity-sentence").textContent =
      `Across: ${pair.a.id}. Down: ${pair.b.id}. Mean cosine similarity: ` +
      `${decimal(pair.similarity, 3)} along the alignment, ` +
      `${decimal(pair.straight, 3)} along the straight line.`;
    this.canvas.setAttribute("aria-valuemax", pair.a.rows - 1);
    this.base = null;
    this.row = 0;
    this.draw();
  }

  draw() {
    if (!this.pair || !this.canvas.clientWidth) return;
    const { a, b } = this.pair;
    const width = this.canvas.clientWidth;
    this.width = width - MAP.left - MAP.right;
    const ratio = Math.min(Math.max(b.rows / a.rows, 0.5), 1.25);
    this.height = Math.min(this.width * ratio, MAP.highest);
    const context = prepare(this.canvas, width, this.height + MAP.top + MAP.bottom);
    context.imageSmoothingEnabled = a.rows > this.width;
    context.drawImage(this.image(), MAP.left, MAP.top, this.width, this.height);
    this.drawBoundaries(context);
    this.drawPath(context);
    this.drawAxes(context);
    this.base = copyOf(this.canvas);
    this.show(this.row);
  }

  image() {
    const { a, b } = this.pair;
    const { values, low, high } = this.pair.similarities();
    const canvas = document.createElement("canvas");
    canvas.width = a.rows;
    canvas.height = b.rows;
    const context = canvas.getContext("2d");
    const image = context.createImageData(a.rows, b.rows);
    const pixels = new Uint32Array(image.data.buffer);
    const scale = high > low ? 255 / (high - low) : 0;
    for (let k = 0; k < values.length; k++) {
      pixels[k] = CIVIDIS_PIXELS[Math.round((values[k] - low) * scale)];
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  x(row) {
    return MAP.left + (row / this.pair.a.rows) * this.width;
  }

  y(row) {
    return MAP.top + (row / this.pair.b.rows) * this.height;
  }

  drawBoundaries(context) {
    context.beginPath();
    for (const row of this.pair.a.boundaries()) {
      context.moveTo(this.x(row), MAP.top);
      context.lineTo(this.x(row), MAP.top + this.height);
    }
    for (const row of this.pair.b.boundaries()) {
      context.moveTo(MAP.left, this.y(row));
      context.lineTo(MAP.left + this.width, this.y(row));
    }
    context.setLineDash([2, 4]);
    strokeTwice(context, 2, 1, "#ffffff", "rgba(0, 0, 0, .55)");
    context.setLineDash([]);
  }

  drawPath(context) {
    context.beginPath();
    for (const [i, j] of this.pair.path) context.lineTo(this.x(i + 0.5), this.y(j + 0.5));
    context.lineJoin = "round";
    strokeTwice(context, 4, 1.8, "#14181d", "#ffffff");
  }

  drawAxes(context) {
    const { a, b } = this.pair;
    context.fillStyle = colourOf("--quiet");
    context.strokeStyle = colourOf("--quiet");
    context.lineWidth = 1;
    context.font = "12px system-ui, sans-serif";
    const bottom = MAP.top + this.height;
    context.beginPath();
    context.textAlign = "center";
    for (const frame of roundNumbers(a.frames[0], a.frames[a.rows - 1], this.width / 70)) {
      const x = this.x(a.rowOf(frame) + 0.5);
      context.moveTo(x, bottom);
      context.lineTo(x, bottom + 4);
      context.fillText(frame, x, bottom + 16);
    }
    context.textAlign = "right";
    for (const frame of roundNumbers(b.frames[0], b.frames[b.rows - 1], this.height / 50)) {
      const y = this.y(b.rowOf(frame) + 0.5);
      context.moveTo(MAP.left - 4, y);
      context.lineTo(MAP.left, y);
      context.fillText(frame, MAP.left - 7, y + 4);
    }
    context.stroke();
    context.textAlign = "center";
    context.fillText(`frame of a: ${a.id}`, MAP.left + this.width / 2, bottom + 35, this.width);
    context.save();
    context.translate(12, MAP.top + this.height / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(`frame of b: ${b.id}`, 0, 0, this.height);
    context.restore();
  }

  show(row) {
    this.row = row;
    const { a, b, matched } = this.pair;
    const other = matched[row];
    this.canvas.dataset.rowA = row;
    this.canvas.dataset.rowB = other < 0 ? "" : other;
    this.canvas.setAttribute("aria-valuenow", row);
    this.canvas.setAttribute("aria-valuetext", `a: ${a.place(row)}; b: ` +
      (other < 0 ? "outside the alignment" : b.place(other)));
    if (!this.base) return;
    const context = putBack(this.canvas, this.base);
    const x = this.x(row + 0.5);
    context.beginPath();
    context.moveTo(x, MAP.top);
    context.lineTo(x, MAP.top + this.height);
    if (other >= 0) {
      const y = this.y(other + 0.5);
      context.moveTo(MAP.left, y);
      context.lineTo(MAP.left + this.width, y);
      strokeTwice(context, 2.4, 1, CROSS);
      context.beginPath();
      context.arc(x, y, 5, 0, 2 * Math.PI);
      context.fillStyle = CROSS;
      context.fill();
    }
    strokeTwice(context, 2.4, 1, CROSS);
  }

  listen() {
    const { canvas } = this;
    const jump = (event) => {
      const x = event.clientX - canvas.getBoundingClientRect().left - MAP.left;
      const row = Math.floor((x / this.width) * this.pair.a.rows);
      this.go(Math.min(Math.max(row, 0), this.pair.a.rows - 1));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      jump(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (canvas.hasPointerCapture(event.pointerId)) jump(event);
    });
    // Left and right are keys of the whole page.
    canvas.addEventListener("keydown", (event) => {
      const last = this.pair.a.rows - 1;
      const to = {
        ArrowUp: this.row - 1, ArrowDown: this.row + 1, Home: 0, End: last,
        PageUp: this.row - 10, PageDown: this.row + 10,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.go(Math.min(Math.max(to, 0), last));
    });
  }
}
