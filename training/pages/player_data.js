// What the page carries: frames, phases, embeddings and pictures of each video, and the pairs.

const KEPT_PICTURES = 360; // decoded pictures in memory; 28 MB at 160 x 120 pixels

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  return bytes;
}

class Video {
  constructor(data, index, classes) {
    this.data = data;
    this.index = index;
    this.id = data.id;
    this.action = data.action;
    this.frames = data.frames;
    this.times = data.times;
    this.phases = data.phases;
    this.points = data.points;
    this.names = classes[data.action] || [];
    this.bytes = null;
    this.rowsOfEmbeddings = null;
  }

  get rows() {
    return this.frames.length;
  }

  number(row) {
    return `frame ${this.frames[row]} of ${this.data.total}`;
  }

  time(row) {
    return `${this.times[row].toFixed(2)} s`;
  }

  place(row) {
    return `${this.number(row)}, ${this.time(row)}`;
  }

  // Name of the phase that a row is labelled with; null without a label.
  phase(row) {
    if (!this.phases || this.phases[row] < 0) return null;
    return this.phaseName(this.phases[row]);
  }

  phaseName(phase) {
    return this.names[phase] ?? `phase ${phase}`;
  }

  // Rows at which another phase begins than that of the row before.
  boundaries() {
    if (!this.phases) return [];
    return this.frames.map((_, row) => row).filter(
      (row) => row > 0 && this.phases[row] !== this.phases[row - 1]);
  }

  // Row whose frame is the nearest to a frame number; frames are in ascending order.
  rowOf(frame) {
    let low = 0;
    let high = this.rows - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.frames[middle] < frame) low = middle + 1;
      else high = middle;
    }
    const before = low > 0 && frame - this.frames[low - 1] <= this.frames[low] - frame;
    return before ? low - 1 : low;
  }

  picture(row) {
    const { offsets, type, data } = this.data.pictures;
    if (!this.bytes) this.bytes = bytesOf(data);
    return new Blob([this.bytes.subarray(offsets[row], offsets[row + 1])], { type });
  }

  // All rows' embeddings one after the other, from 16-bit integers: value / 32767.
  embeddings() {
    if (!this.rowsOfEmbeddings) {
      const whole = new Int16Array(bytesOf(this.data.embeddings.data).buffer);
      this.rowsOfEmbeddings = Float32Array.from(whole, (value) => value / 32767);
    }
    return this.rowsOfEmbeddings;
  }
}

// Decoded pictures, the most recently used ones.
class Pictures {
  constructor(limit) {
    this.limit = limit;
    this.entries = new Map();
  }

  // Calls `use` with the picture of a row: at once where it is decoded already. A picture that
  // cannot be decoded is null.
  load(video, row, use) {
    const key = `${video.index}:${row}`;
    let entry = this.entries.get(key);
    if (entry) {
      this.entries.delete(key);
    } else {
      entry = { bitmap: undefined, waiting: [] };
      this.decode(video.picture(row), entry);
    }
    this.entries.set(key, entry);
    if (entry.bitmap !== undefined) use(entry.bitmap);
    else entry.waiting.push(use);
    this.shrink();
  }

  async decode(blob, entry) {
    let bitmap = null;
    try {
      bitmap = await createImageBitmap(blob);
    } catch {
      // A damaged picture leaves its panel empty; the others are shown.
    }
    entry.bitmap = bitmap;
    for (const use of entry.waiting) use(bitmap);
    entry.waiting = [];
  }

  shrink() {
    for (const [key, entry] of this.entries) {
      if (this.entries.size <= this.limit) return;
      if (entry.bitmap === undefined) continue;
      this.entries.delete(key);
      entry.bitmap?.close();
    }
  }
}

// Two videos: for each row of a the row of b, by the alignment and without it.
class Pair {
  constructor(a, b, data) {
    this.a = a;
    this.b = b;
    this.matched = data.matched;
    this.even = data.even;
    this.path = data.path;
    this.similarity = data.similarity;
    this.straight = data.straight;
    this.events = data.events;
    this.matrix = null;
  }

  // Cosine similarity of every row of a (columns) with every row of b (lines).
  similarities() {
    if (this.matrix) return this.matrix;
    const { a, b } = this;
    const width = a.data.embeddings.width;
    const x = a.embeddings();
    const y = b.embeddings();
    const values = new Float32Array(a.rows * b.rows);
    let low = Infinity;
    let high = -Infinity;
    for (let j = 0; j < b.rows; j++) {
      for (let i = 0; i < a.rows; i++) {
        let sum = 0;
        for (let k = 0, p = i * width, q = j * width; k < width; k++, p++, q++) sum += x[p] * y[q];
        values[j * a.rows + i] = sum;
        if (sum < low) low = sum;
        if (sum > high) high = sum;
      }
    }
    this.matrix = { values, low, high };
    return this.matrix;
  }
}

class Payload {
  constructor(data) {
    this.videos = data.videos.map((video, index) => new Video(video, index, data.classes));
    this.data = data.pairs;
    this.start = data.start;
    this.cache = { key: "", pair: null };
    // "Next pair" goes through unordered pairs: swapping is a button.
    this.order = Object.keys(data.pairs).map((key) => key.split(",").map(Number))
      .filter(([a, b]) => a < b || !(`${b},${a}` in data.pairs))
      .sort((p, q) => p[0] - q[0] || p[1] - q[1]);
  }

  has(a, b) {
    return `${a},${b}` in this.data;
  }

  pair(a, b) {
    const key = `${a},${b}`;
    if (this.cache.key !== key) {
      this.cache = { key, pair: new Pair(this.videos[a], this.videos[b], this.data[key]) };
    }
    return this.cache.pair;
  }

  partners(a) {
    return this.videos.filter((video) => this.has(a, video.index));
  }

  // Place of a pair, in either order, among the pairs that "next" goes through.
  place(a, b) {
    return this.order.findIndex(([p, q]) => (p === a && q === b) || (p === b && q === a));
  }
}
