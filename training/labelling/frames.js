// Pictures of a video's frames, fetched in chunks and kept.

import { fetchRaw } from "./server.js";

const KEPT_FRAMES = 4000;
const KEPT_BITMAPS = 24;

export class Frames {
  constructor(number, facts) {
    this.number = number;
    this.facts = facts;
    this.chunks = new Map(); // number of the chunk -> promise of its JPEG blobs
    this.ready = new Map(); // the same, those that are there
    this.bitmaps = new Map();
  }

  chunkOf(frame) {
    return Math.floor(frame / this.facts.chunk);
  }

  isReady(frame) {
    return this.ready.has(this.chunkOf(frame));
  }

  load(chunk) {
    if (!this.chunks.has(chunk)) {
      const promise = this.fetch(chunk);
      this.chunks.set(chunk, promise);
      promise.catch(() => this.chunks.delete(chunk));
      const most = Math.max(3, Math.floor(KEPT_FRAMES / this.facts.chunk));
      for (const old of [...this.chunks.keys()].slice(0, Math.max(0, this.chunks.size - most))) {
        this.chunks.delete(old);
        this.ready.delete(old);
      }
    }
    return this.chunks.get(chunk);
  }

  async fetch(chunk) {
    const response = await fetchRaw(`frames/${this.number}/${chunk}`);
    const sizes = response.headers.get("X-Sizes").split(",").map(Number);
    const bytes = await response.arrayBuffer();
    let start = 0;
    const blobs = sizes.map((size) => {
      const blob = size ? new Blob([bytes.slice(start, start + size)], { type: "image/jpeg" }) : null;
      start += size;
      return blob;
    });
    this.ready.set(chunk, blobs);
    return blobs;
  }

  // The chunks around a frame, the one after it first.
  prefetch(frame) {
    const chunk = this.chunkOf(frame);
    const last = this.chunkOf(this.facts.frames - 1);
    for (const near of [chunk + 1, chunk - 1])
      if (near >= 0 && near <= last) this.load(near).catch(() => {});
  }

  // An ImageBitmap; null for a frame that is damaged.
  async bitmap(frame) {
    if (!this.bitmaps.has(frame)) {
      const chunk = this.chunkOf(frame);
      const blobs = await this.load(chunk);
      const blob = blobs[frame - chunk * this.facts.chunk];
      const bitmap = blob ? await createImageBitmap(blob) : null;
      this.bitmaps.set(frame, bitmap);
      if (this.bitmaps.size > KEPT_BITMAPS) {
        const oldest = this.bitmaps.keys().next().value;
        this.bitmaps.get(oldest)?.close();
        this.bitmaps.delete(oldest);
      }
      return bitmap;
    }
    return this.bitmaps.get(frame);
  }

  close() {
    for (const bitmap of this.bitmaps.values()) bitmap?.close();
    this.bitmaps.clear();
  }
}
