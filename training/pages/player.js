// The player: two videos in step, the controls, the keys.

const AHEAD = 10; // pictures decoded ahead of play, for each panel

// One canvas with its caption. Shows what was decoded last; never steps back to an older request.
class Panel {
  constructor(name, pictures) {
    this.canvas = document.getElementById(`player-${name}`);
    this.caption = document.getElementById(`player-${name}-caption`);
    this.role = name === "even" ? "b without alignment" : `video ${name}`;
    this.pictures = pictures;
    this.asked = 0;
    this.drawn = 0;
  }

  show(video, row) {
    const number = ++this.asked;
    const draw = (bitmap) => {
      if (number < this.drawn) return;
      this.drawn = number;
      this.draw(video, row, bitmap);
    };
    if (row < 0) draw(null);
    else this.pictures.load(video, row, draw);
  }

  draw(video, row, bitmap) {
    const { canvas } = this;
    const { width, height } = video.data.pictures;
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (bitmap) context.drawImage(bitmap, 0, 0, width, height);
    const outside = row < 0;
    canvas.dataset.row = outside ? "" : row;
    canvas.dataset.frame = outside ? "" : video.frames[row];
    const [id, place, phase] = this.caption.children;
    id.textContent = id.title = video.id;
    place.textContent = outside ? "outside the alignment" : video.number(row);
    phase.textContent = outside
      ? "no frame matches" : `${video.time(row)}, ${video.phase(row) ?? "unlabelled"}`;
    canvas.setAttribute("aria-label", `${this.role}: ${video.id}, ${place.textContent}`);
  }
}

class Player {
  constructor(payload) {
    this.payload = payload;
    this.pictures = new Pictures(KEPT_PICTURES);
    this.get = (name) => document.getElementById(`player-${name}`);
    this.panels = Object.fromEntries(
      ["a", "b", "even"].map((name) => [name, new Panel(name, this.pictures)]));
    this.slider = this.get("slider");
    this.speed = this.get("speed");
    this.status = this.get("status");
    const go = (row) => this.go(row);
    this.events = new Events(this.get("events"), go);
    this.map = document.getElementById("similarity-map") && new SimilarityMap(go);
    this.plots = document.getElementById("embedding-plot") && new EmbeddingPlots(payload);
    this.playing = false;
    this.row = 0;
    this.listen();
    this.setPair(...payload.start);
  }

  setPair(a, b) {
    this.pause();
    this.pair = this.payload.pair(a, b);
    this.fill("choose-a", this.payload.videos.filter(
      (video) => this.payload.partners(video.index).length), a);
    this.fill("choose-b", this.payload.partners(a), b);
    this.get("swap").disabled = !this.payload.has(b, a);
    const { order } = this.payload;
    this.get("pair-number").textContent = `pair ${this.payload.place(a, b) + 1} of ${order.length}`;
    for (const name of ["next", "previous"]) this.get(name).disabled = order.length < 2;
    const shapes = [this.pair.a, this.pair.b].map(({ data: { pictures } }) =>
      pictures.width / pictures.height);
    this.get("panels").style.setProperty("--shape", Math.min(...shapes));
    this.slider.max = this.pair.a.rows - 1;
    this.events.setPair(this.pair);
    this.map?.setPair(this.pair);
    this.plots?.setAction(this.pair.a.action);
    this.go(0);
  }

  fill(name, videos, chosen) {
    this.get(name).replaceChildren(...videos.map(
      (video) => new Option(video.id, video.index, false, video.index === chosen)));
  }

  // Pair after (1) or before (-1) the present one; from the last on to the first.
  turn(step) {
    const { order } = this.payload;
    const at = this.payload.place(this.pair.a.index, this.pair.b.index);
    this.setPair(...order[(at + step + order.length) % order.length]);
  }

  swap() {
    const { a, b } = this.pair;
    if (this.payload.has(b.index, a.index)) this.setPair(b.index, a.index);
  }

  choose(name, index) {
    let [a, b] = [this.pair.a.index, this.pair.b.index];
    if (name === "b") b = index;
    else if (index === b) [a, b] = [b, a];
    else a = index;
    if (!this.payload.has(a, b)) b = this.payload.partners(a)[0].index;
    this.setPair(a, b);
  }

  // Shows a row of a, and of b what belongs to it.
  go(row) {
    const { a } = this.pair;
    this.row = Math.min(Math.max(row, 0), a.rows - 1);
    this.clock = a.times[this.row];
    this.show();
  }

  show() {
    const { row } = this;
    const { a, b, matched, even } = this.pair;
    this.slider.value = row;
    this.slider.setAttribute("aria-valuetext", a.place(row));
    this.panels.a.show(a, row);
    this.panels.b.show(b, matched[row]);
    this.panels.even.show(b, even[row]);
    this.map?.show(row);
    this.plots?.mark([[a, row, "a"], ...(matched[row] < 0 ? [] : [[b, matched[row], "b"]])]);
    this.events.show(row);
    this.report();
  }

  // The line below the slider. Screen readers announce it when it rests, not while it runs.
  report() {
    const { a, b, matched } = this.pair;
    const other = matched[this.row];
    const text = (name, video, row) =>
      `${name}: ${video.place(row)}, ${video.phase(row) ?? "unlabelled"}`;
    const write = () => {
      this.status.textContent = `${text("a", a, this.row)}; ` +
        (other < 0 ? "b: outside the alignment" : text("b", b, other));
    };
    clearTimeout(this.announcement);
    if (this.playing) write();
    else this.announcement = setTimeout(write, 120);
  }

  play() {
    if (this.row === this.pair.a.rows - 1) this.go(0);
    this.playing = true;
    this.status.setAttribute("aria-live", "off");
    this.showPlaying();
    this.before = performance.now();
    requestAnimationFrame((now) => this.tick(now));
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    this.status.setAttribute("aria-live", "polite");
    this.showPlaying();
    this.report();
  }

  showPlaying() {
    const button = this.get("play");
    button.textContent = this.playing ? "Pause" : "Play";
    button.classList.toggle("playing", this.playing);
  }

  // By the time that has passed: a late tick skips frames. Stops at the last frame.
  tick(now) {
    if (!this.playing) return;
    const { a } = this.pair;
    this.clock += (Math.max(now - this.before, 0) / 1000) * Number(this.speed.value);
    this.before = now;
    let { row } = this;
    while (row + 1 < a.rows && a.times[row + 1] <= this.clock) row++;
    if (row !== this.row) {
      this.row = row;
      this.show();
      this.decodeAhead();
    }
    if (row === a.rows - 1) this.pause();
    else requestAnimationFrame((later) => this.tick(later));
  }

  decodeAhead() {
    const { a, b, matched, even } = this.pair;
    for (let row = this.row + 1; row < Math.min(this.row + AHEAD, a.rows); row++) {
      for (const [video, wanted] of [[a, row], [b, matched[row]], [b, even[row]]]) {
        if (wanted >= 0) this.pictures.load(video, wanted, () => {});
      }
    }
  }

  step(rows) {
    this.pause();
    this.go(this.row + rows);
  }

  faster(step) {
    const last = this.speed.options.length - 1;
    this.speed.selectedIndex = Math.min(Math.max(this.speed.selectedIndex + step, 0), last);
  }

  listen() {
    const on = (name, event, use) => this.get(name).addEventListener(event, use);
    const toggle = () => (this.playing ? this.pause() : this.play());
    on("slider", "input", () => this.go(Number(this.slider.value)));
    on("play", "click", toggle);
    on("back", "click", () => this.step(-1));
    on("forward", "click", () => this.step(1));
    on("next", "click", () => this.turn(1));
    on("previous", "click", () => this.turn(-1));
    on("swap", "click", () => this.swap());
    for (const name of ["a", "b"]) {
      on(`choose-${name}`, "change", (event) => this.choose(name, Number(event.target.value)));
    }
    on("compare", "change", (event) => {
      this.panels.even.canvas.closest("figure").hidden = !event.target.checked;
      this.get("panels").classList.toggle("two", !event.target.checked);
    });
    document.addEventListener("visibilitychange", () => document.hidden && this.pause());
    const keys = {
      " ": toggle, ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1),
      n: () => this.turn(1), p: () => this.turn(-1), s: () => this.swap(),
      e: () => this.step(this.events.next(this.row) - this.row),
      "+": () => this.faster(1), "=": () => this.faster(1), "-": () => this.faster(-1),
    };
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || takesKeys(event)) return;
      let use = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (event.shiftKey && event.key === "ArrowLeft") use = () => this.step(-10);
      if (event.shiftKey && event.key === "ArrowRight") use = () => this.step(10);
      if (!use) return;
      event.preventDefault();
      use();
    });
  }
}

// Whether a key belongs to the element that has the focus: text, choices, a pressed button.
function takesKeys(event) {
  const { target } = event;
  if (target.id === "player-slider") return false;
  if (target.closest("input:not([type=checkbox]), select, textarea, video, [contenteditable]")) {
    return true;
  }
  return event.key === " " && target.closest("button, summary, a, input") !== null;
}

const payload = new Payload(JSON.parse(document.getElementById("player-data").textContent));
new Player(payload);
