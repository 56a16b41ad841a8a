// A map of the features: a dot for each sample; a lasso, or a ring moved by keys, around some shows them.

import { element, hueOf } from "./dom.js";
import { t } from "./texts.js";

const STEP = 0.03; // of the map's width, by which a key moves the ring
const NEAR = 12; // pixels of the map from which a dot is pointed at

/**
 * Return the canvas of `points` ([x, y] in [-1, 1], or null where the map lacks a sample), coloured by `labels`.
 *
 * `onChosen` is told of the samples that somebody asks for, `onPointed` of the one under the mouse or next to the
 * ring's middle, null for none.
 */
export function featureMap(points, labels, onChosen, onPointed) {
  const canvas = element("canvas", { class: "map", width: 720, height: 480, tabindex: "0", role: "application", "aria-label": t("map_keys") });
  const places = points.map((point) => point && [(point[0] * 0.47 + 0.5) * canvas.width, (0.5 - point[1] * 0.47) * canvas.height]);
  const ring = { x: canvas.width / 2, y: canvas.height / 2, radius: 60, shown: false };
  let lasso = [];

  const paint = () => {
    const pen = canvas.getContext("2d");
    const dark = document.documentElement.dataset.theme === "dark";
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const size = points.length > 20000 ? 1.5 : points.length > 2000 ? 2.5 : 4;
    places.forEach((place, index) => {
      if (!place) return;
      pen.fillStyle = labels[index] < 0 ? (dark ? "#8886" : "#7775") : `hsl(${hueOf(labels[index])} 60% ${dark ? 62 : 45}%)`;
      pen.beginPath();
      pen.arc(place[0], place[1], size, 0, 7);
      pen.fill();
    });
    pen.strokeStyle = dark ? "#fff" : "#000";
    pen.setLineDash([5, 4]);
    pen.beginPath();
    for (const [x, y] of lasso) pen.lineTo(x, y);
    pen.closePath();
    if (ring.shown) {
      pen.moveTo(ring.x + ring.radius, ring.y);
      pen.arc(ring.x, ring.y, ring.radius, 0, 7);
    }
    pen.stroke();
    pen.setLineDash([]);
  };
  const choose = (isInside) => {
    const found = places.flatMap((place, index) => (place && isInside(place) ? [index] : []));
    if (found.length) onChosen(found);
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  };
  const point = ([x, y], reach) => {
    let [nearest, least] = [null, reach];
    places.forEach((place, index) => {
      const distance = place ? Math.hypot(place[0] - x, place[1] - y) : Infinity;
      if (distance < least) [nearest, least] = [index, distance];
    });
    onPointed(nearest);
  };
  const key = (event) => {
    const step = STEP * canvas.width;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const grows = { "+": 1.25, "=": 1.25, "-": 0.8 };
    if (event.key in moves) {
      ring.x = Math.min(Math.max(ring.x + moves[event.key][0], 0), canvas.width);
      ring.y = Math.min(Math.max(ring.y + moves[event.key][1], 0), canvas.height);
    } else if (event.key in grows) ring.radius = Math.min(Math.max(ring.radius * grows[event.key], 6), canvas.width);
    else if (event.key === "Enter") choose(([x, y]) => Math.hypot(x - ring.x, y - ring.y) <= ring.radius);
    else return;
    point([ring.x, ring.y], ring.radius);
    event.preventDefault();
    paint();
  };
  const on = {
    pointerdown: (event) => {
      canvas.setPointerCapture(event.pointerId);
      ring.shown = false;
      lasso = [at(event)];
    },
    pointermove: (event) => {
      if (!lasso.length) {
        point(at(event), NEAR);
        return;
      }
      lasso.push(at(event));
      paint();
    },
    pointerup: () => {
      const around = lasso;
      lasso = [];
      paint();
      if (around.length > 2) choose((place) => inside(place, around));
    },
    keydown: (event) => {
      ring.shown = true;
      key(event);
    },
    focus: () => ((ring.shown = canvas.matches(":focus-visible")), paint()),
    blur: () => ((ring.shown = false), paint()),
  };
  for (const [name, listener] of Object.entries(on)) canvas.addEventListener(name, listener);
  paint();
  return canvas;
}

function inside([x, y], polygon) {
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [[xi, yi], [xj, yj]] = [polygon[i], polygon[j]];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
  }
  return odd;
}
