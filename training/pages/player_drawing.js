// Colours, markers and canvases that the similarity map and the embedding plots share.

// Cividis (Nunez, Anderton, Renslow 2018): even in lightness, the same to colour-blind eyes.
const CIVIDIS = [
  "00224e", "002e6a", "1a386f", "32436d", "434e6c", "535a6d", "61656f", "6f7073", "7d7c78",
  "8c8878", "9b9476", "aba072", "bcae6c", "cdbb63", "dec958", "f0d846", "fee838",
].map((text) => [0, 2, 4].map((at) => parseInt(text.slice(at, at + 2), 16)));

// 256 colours as 32-bit pixels of an ImageData (little-endian: alpha, blue, green, red).
const CIVIDIS_PIXELS = Uint32Array.from({ length: 256 }, (_, k) => {
  const at = (k / 255) * (CIVIDIS.length - 1);
  const left = Math.min(Math.floor(at), CIVIDIS.length - 2);
  const [r, g, b] = CIVIDIS[left].map(
    (value, channel) => Math.round(value + (at - left) * (CIVIDIS[left + 1][channel] - value)));
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
});

function cividisGradient() {
  return `linear-gradient(to right, ${CIVIDIS.map((rgb) => `rgb(${rgb})`).join(", ")})`;
}

// Markers within a square from -1 to 1, as SVG paths. Filled shapes and strokes take turns.
const MARKERS = [
  "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",
  "M0,-1.15L1.1,.8L-1.1,.8Z",
  "M-.85,-.85H.85V.85H-.85Z",
  "M0,-1.2L1.2,0L0,1.2L-1.2,0Z",
  "M0,1.15L1.1,-.8L-1.1,-.8Z",
  "M-.35,-1.1H.35V-.35H1.1V.35H.35V1.1H-.35V.35H-1.1V-.35H-.35Z",
  "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0ZM.5,0A.5,.5,0,1,0,-.5,0A.5,.5,0,1,0,.5,0Z",
  "M0,-1.2L.35,-.4L1.15,-.35L.5,.2L.75,1L0,.55L-.75,1L-.5,.2L-1.15,-.35L-.35,-.4Z",
];

function colourOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Colour and marker of group k of a palette { name, colours }: the colours are the properties
// `--name-0` and so on. Where they begin again the markers shift, so that no two are alike.
function groupStyle(k, { name, colours }) {
  if (k < 0) return { colour: "--unlabelled", marker: MARKERS[0] };
  const shift = Math.floor(k / colours);
  return { colour: `--${name}-${k % colours}`, marker: MARKERS[(k + shift) % MARKERS.length] };
}

// Sets a canvas to its width on the page and to `height` CSS pixels; returns its context, scaled.
function prepare(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}

// A copy of what is drawn on a canvas, to put back before something is drawn on top.
function copyOf(canvas) {
  const copy = document.createElement("canvas");
  copy.width = canvas.width;
  copy.height = canvas.height;
  copy.getContext("2d").drawImage(canvas, 0, 0);
  return copy;
}

function putBack(canvas, copy) {
  const context = canvas.getContext("2d");
  context.save();
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(copy, 0, 0);
  context.restore();
  return context;
}

// Draws the current path twice, so that it is seen on any colour: a wide line below a thin one.
function strokeTwice(context, wide, thin, upper, lower = "rgba(0, 0, 0, .75)") {
  context.lineWidth = wide;
  context.strokeStyle = lower;
  context.stroke();
  context.lineWidth = thin;
  context.strokeStyle = upper;
  context.stroke();
}

const decimal = (value, digits) => value.toFixed(digits).replace("-", "−");

// About `count` round numbers from `first` to `last`.
function roundNumbers(first, last, count) {
  const raw = Math.max((last - first) / count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= raw);
  const found = [];
  for (let k = Math.ceil(first / step) * step; k <= last; k += step) found.push(k);
  return found;
}

// Calls `redraw` when the width of an element changes, or light turns to dark.
function onChange(element, redraw) {
  let width = 0;
  new ResizeObserver(() => {
    if (element.clientWidth !== width) {
      width = element.clientWidth;
      redraw();
    }
  }).observe(element);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}
