// What the model's image processor does to a picture that is not cut into tiles (Lfm2VlImageProcessor of transformers).
// llama.cpp would resize as well, but cuts large pictures into tiles, which the classifier was not trained on.

/**
 * The size of a picture for the model, as [width, height]: multiples of `multiple` pixels, the aspect ratio about kept,
 * min_tokens to max_tokens squares of multiple x multiple pixels (smart_resize in Lfm2VlImageProcessor). Throws an
 * Error for a picture that is too narrow for that.
 */
export function target(width, height, { multiple, min_tokens, max_tokens }) {
  const rounded = (size) => Math.max(multiple, roundHalfToEven(size / multiple) * multiple);
  const tokens = ([width, height]) => (width * height) / multiple ** 2;
  let size = [width, height].map(rounded);
  if (tokens(size) > max_tokens) {
    const shrink = Math.sqrt((width * height) / (max_tokens * multiple ** 2));
    size = [width, height].map((side) => Math.max(multiple, Math.floor(side / shrink / multiple) * multiple));
  } else if (tokens(size) < min_tokens) {
    const grow = Math.sqrt((min_tokens * multiple ** 2) / (width * height));
    size = [width, height].map((side) => Math.ceil((side * grow) / multiple) * multiple);
  }
  if (tokens(size) > max_tokens) {
    throw new Error(`A picture of ${width} x ${height} pixels is too narrow for this model.`);
  }
  return size;
}

/**
 * The picture {width, height, rgb} at another size. `resample` names a filter, which is stretched when shrinking, as in
 * Pillow and in torchvision's antialiased resize: the result is within two levels of 255. A canvas resizes in another
 * way: of 100 photos of car_badges, enlarged, it changed 2 or 3 labels, and probabilities by up to 14 points.
 */
export function resized({ width, height, rgb }, [newWidth, newHeight], resample) {
  const rows = pass(rgb, height, width, newWidth, [width * 3, 3], resample); // (height, newWidth, 3)
  const both = pass(rows, newWidth, height, newHeight, [3, newWidth * 3], resample);
  return { width: newWidth, height: newHeight, rgb: both };
}

// Each as [its radius, its weight at a distance]
const FILTERS = {
  bilinear: [1, (d) => Math.max(0, 1 - d)],
  // Keys 1981, with a = -0.5
  bicubic: [2, (d) => (d < 1 ? (1.5 * d - 2.5) * d * d + 1 : d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0)],
  lanczos: [3, (d) => (d < 3 ? sinc(d) * sinc(d / 3) : 0)],
};

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

/**
 * Resizes along one axis, from `length` to `newLength` pixels, in each of `lines` lines. The last argument has the
 * steps, in values, from line to line and from pixel to pixel.
 */
function pass(values, lines, length, newLength, [lineStep, step], resample) {
  if (length === newLength) return values;
  const taps = tapsFor(length, newLength, resample);
  const outLineStep = lineStep === 3 ? 3 : newLength * 3;
  const out = new Uint8ClampedArray(lines * newLength * 3); // rounds and clamps
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < newLength; i++) {
      const { first, weights } = taps[i];
      for (let colour = 0; colour < 3; colour++) {
        let at = line * lineStep + first * step + colour;
        let sum = 0;
        for (let k = 0; k < weights.length; k++, at += step) sum += weights[k] * values[at];
        out[line * outLineStep + i * step + colour] = sum;
      }
    }
  }
  return out;
}

/** For each new pixel, the first old pixel that it is made of, and the weights from that one on, whose sum is 1. */
function tapsFor(length, newLength, resample) {
  const [radius, filter] = FILTERS[resample];
  const scale = length / newLength;
  const stretch = Math.max(1, scale);
  return Array.from({ length: newLength }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - radius * stretch + 0.5));
    const end = Math.min(length, Math.floor(centre + radius * stretch + 0.5));
    const weights = new Float64Array(end - first).map((_, k) => filter(Math.abs(first + k + 0.5 - centre) / stretch));
    const total = weights.reduce((sum, weight) => sum + weight);
    return { first, weights: weights.map((weight) => weight / total) };
  });
}

function roundHalfToEven(x) {
  const rounded = Math.round(x);
  return rounded - x === 0.5 && rounded % 2 ? rounded - 1 : rounded; // as Python's round
}
