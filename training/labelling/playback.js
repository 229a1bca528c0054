// The picture of the present frame: moving to a frame, and play at the file's rate.

export class Playback {
  // shown(frame): the frame that the picture shows now, or is about to.
  constructor(canvas, message, shown) {
    this.canvas = canvas;
    this.message = message;
    this.shown = shown;
    this.frames = null;
    this.frame = 0;
    this.crop = null;
    this.playing = false;
    this.speed = 1;
    this.asked = 0;
    this.drawn = 0;
  }

  open(frames, frame) {
    this.pause();
    this.frames?.close();
    this.frames = frames;
    this.drawn = this.asked; // answers for the video before come too late
    this.canvas.dataset.frame = "";
    this.go(frame);
  }

  // Show a message in place of the picture.
  close(text) {
    this.pause();
    this.frames?.close();
    this.frames = null;
    this.asked += 1;
    this.drawn = this.asked;
    this.canvas.dataset.frame = "";
    this.say(text);
  }

  say(text) {
    this.message.hidden = !text;
    this.message.textContent = text;
  }

  go(frame) {
    if (!this.frames) return;
    const { facts } = this.frames;
    this.frame = Math.max(0, Math.min(facts.frames - 1, frame));
    this.clock = null;
    this.shown(this.frame);
    this.show();
  }

  async show() {
    const { frames, frame } = this;
    const number = ++this.asked;
    frames.prefetch(frame);
    let bitmap = null;
    let trouble = "";
    try {
      bitmap = await frames.bitmap(frame);
      if (!bitmap) trouble = `frame ${frame} is damaged and has no picture`;
    } catch (error) {
      trouble = `frame ${frame} cannot be shown: ${error.message}`;
    }
    if (number < this.drawn || frames !== this.frames) return;
    this.drawn = number;
    this.say(trouble);
    this.draw(bitmap, frame);
  }

  draw(bitmap, frame) {
    const { canvas } = this;
    const context = canvas.getContext("2d");
    if (bitmap && (canvas.width !== bitmap.width || canvas.height !== bitmap.height))
      [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (bitmap) context.drawImage(bitmap, 0, 0);
    canvas.dataset.frame = frame;
    canvas.setAttribute("aria-label", `frame ${frame}`);
    if (bitmap && this.crop) this.drawCrop(context);
  }

  // What lies outside the crop of the labels is darker; frames count and are shown whole.
  drawCrop(context) {
    const { width, height } = this.canvas;
    const { facts } = this.frames;
    const [left, top, wide, high] = this.crop.map((value, place) =>
      value * (place % 2 ? height / facts.height : width / facts.width));
    context.fillStyle = "rgb(0 0 0 / 55%)";
    context.beginPath();
    context.rect(0, 0, width, height);
    context.rect(left, top, wide, high);
    context.fill("evenodd");
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  play() {
    if (!this.frames || this.frames.facts.frames < 2) return;
    if (this.frame === this.frames.facts.frames - 1) this.go(0);
    this.playing = true;
    this.clock = null;
    this.changed?.();
    requestAnimationFrame((now) => this.tick(now));
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    this.changed?.();
  }

  setSpeed(speed) {
    this.speed = speed;
    this.clock = null;
  }

  // Frames are left out where they cannot be drawn in time; play waits for those not yet here.
  tick(now) {
    if (!this.playing) return;
    requestAnimationFrame((later) => this.tick(later));
    const { facts } = this.frames;
    if (!this.clock) this.clock = { time: now, frame: this.frame };
    const passed = ((now - this.clock.time) / 1000) * facts.fps * this.speed;
    const frame = Math.min(facts.frames - 1, this.clock.frame + Math.floor(passed));
    if (frame === this.frame) return;
    if (!this.frames.isReady(frame)) {
      this.clock = null;
      this.frames.load(this.frames.chunkOf(frame)).catch(() => this.pause());
      return;
    }
    this.frame = frame;
    this.shown(frame);
    this.show();
    if (frame === facts.frames - 1) this.pause();
  }
}
