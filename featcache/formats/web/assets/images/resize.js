// Resizing and cropping as the Python side does it: Pillow's antialiased resize in 8-bit fixed point, width first.
// The results are Pillow's own bytes, so a photo gets the same network input in the browser as in Python.

const PRECISION_BITS = 32 - 8 - 2;
const MAX_PIXELS = 1 << 27;

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: cubic },
  lanczos: { support: 3, weight: (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function cubic(value) {
  const a = -0.5;
  const x = Math.abs(value);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

// Python rounds halves to even.
function roundHalfEven(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

// Return {width, height, left, top}: what an image is scaled to, and where the kept part begins.
export function planResize(width, height, preprocessing) {
  const p = preprocessing;
  let plan;
  if (p.crop_mode === "squash") {
    plan = { width: p.width, height: p.height, left: 0, top: 0 };
  } else {
    const stretched = Math.trunc((p.resize * Math.max(width, height)) / Math.min(width, height));
    const size = width <= height ? [p.resize, stretched] : [stretched, p.resize];
    plan = {
      width: size[0],
      height: size[1],
      left: roundHalfEven((size[0] - p.width) / 2),
      top: roundHalfEven((size[1] - p.height) / 2),
    };
  }
  if (plan.width * plan.height > MAX_PIXELS || p.width * height > MAX_PIXELS) {
    throw new Error(`the image of ${width} x ${height} pixels is too long and thin`);
  }
  return plan;
}

// Return, for outputs `from` to `to` of an axis scaled from `size` to `target`, where each begins to read and its
// integer weights; every output has `taps` of them.
function coefficients(size, target, from, to, interpolation) {
  const scale = size / target;
  if (interpolation === "nearest") {
    const starts = new Int32Array(to - from);
    let at = scale * 0.5; // added up as Pillow does: rounding decides where two pixels are equally near
    for (let i = 0; i < to; i++, at += scale) {
      if (i >= from) starts[i - from] = Math.min(size - 1, Math.floor(at));
    }
    return { starts, taps: 1, weights: new Int32Array(to - from).fill(1 << PRECISION_BITS) };
  }
  const filter = FILTERS[interpolation];
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  const taps = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(to - from);
  const weights = new Int32Array((to - from) * taps);
  const row = new Float64Array(taps);
  for (let i = from; i < to; i++) {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const count = Math.min(size, Math.trunc(center + support + 0.5)) - start;
    let sum = 0;
    for (let k = 0; k < count; k++) {
      row[k] = filter.weight((k + start - center + 0.5) * (1 / stretch));
      sum += row[k];
    }
    for (let k = 0; k < count; k++) {
      const exact = (sum !== 0 ? row[k] / sum : row[k]) * (1 << PRECISION_BITS);
      weights[(i - from) * taps + k] = Math.trunc(exact + (exact < 0 ? -0.5 : 0.5));
    }
    // weights beyond the edge stay 0; reading is kept inside the image
    starts[i - from] = start;
  }
  return { starts, taps, weights };
}

function clip(sum) {
  const value = sum >> PRECISION_BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

// Return (rows, kept, 3) bytes: each row of `source` (`stride` bytes a pixel) scaled to `target` and cut to the part.
function resizeRows(source, width, rows, stride, target, from, to, interpolation) {
  const kept = to - from;
  const out = new Uint8ClampedArray(rows * kept * 3);
  if (width === target) {
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < kept; x++) {
        for (let c = 0; c < 3; c++) out[(y * kept + x) * 3 + c] = source[(y * width + x + from) * stride + c];
      }
    }
    return out;
  }
  const { starts, taps, weights } = coefficients(width, target, from, to, interpolation);
  const half = 1 << (PRECISION_BITS - 1);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < kept; x++) {
      const start = starts[x];
      const count = Math.min(taps, width - start);
      let red = half, green = half, blue = half;
      for (let k = 0; k < count; k++) {
        const weight = weights[x * taps + k];
        const at = (y * width + start + k) * stride;
        red += source[at] * weight;
        green += source[at + 1] * weight;
        blue += source[at + 2] * weight;
      }
      const to = (y * kept + x) * 3;
      out[to] = clip(red);
      out[to + 1] = clip(green);
      out[to + 2] = clip(blue);
    }
  }
  return out;
}

// Return (kept, width, 3) bytes: the columns of `source` (rows, width, 3) scaled to `target` rows, cut to the part.
function resizeColumns(source, width, rows, target, from, to, interpolation) {
  const kept = to - from;
  if (rows === target) return source.slice(from * width * 3, to * width * 3);
  const out = new Uint8ClampedArray(kept * width * 3);
  const { starts, taps, weights } = coefficients(rows, target, from, to, interpolation);
  const half = 1 << (PRECISION_BITS - 1);
  const length = width * 3;
  const sums = new Float64Array(length);
  for (let y = 0; y < kept; y++) {
    const start = starts[y];
    const count = Math.min(taps, rows - start);
    sums.fill(half);
    for (let k = 0; k < count; k++) {
      const weight = weights[y * taps + k];
      if (weight === 0) continue;
      const at = (start + k) * length;
      for (let x = 0; x < length; x++) sums[x] += source[at + x] * weight;
    }
    for (let x = 0; x < length; x++) out[y * length + x] = clip(sums[x]);
  }
  return out;
}

// Return (preprocessing.height, preprocessing.width, 3) bytes of an image's `data` (height, width, `stride`), RGB first.
export function resizeCrop(data, width, height, stride, preprocessing) {
  const p = preprocessing;
  const plan = planResize(width, height, p);
  const rows = resizeRows(data, width, height, stride, plan.width, plan.left, plan.left + p.width, p.interpolation);
  return resizeColumns(rows, p.width, height, plan.height, plan.top, plan.top + p.height, p.interpolation);
}
