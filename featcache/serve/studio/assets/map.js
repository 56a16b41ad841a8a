// A map of the features: a dot for each image; a lasso around some shows them.

import { element, hueOf } from "./dom.js";
import { t } from "./texts.js";

export function featureMap(points, labels, onLasso) {
  const canvas = element("canvas", { class: "map", width: 720, height: 480, tabindex: "0", role: "img", "aria-label": t("map_hint") });
  const place = ([x, y]) => [(x * 0.47 + 0.5) * canvas.width, (0.5 - y * 0.47) * canvas.height];
  let lasso = [];
  const paint = () => {
    const pen = canvas.getContext("2d");
    const { theme } = document.documentElement.dataset;
    const dark = theme === "dark";
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const size = points.length > 20000 ? 1.5 : points.length > 2000 ? 2.5 : 4;
    points.forEach((point, index) => {
      const [x, y] = place(point);
      pen.fillStyle = labels[index] < 0 ? (dark ? "#8886" : "#7775") : `hsl(${hueOf(labels[index])} 60% ${dark ? 62 : 45}%)`;
      pen.beginPath();
      pen.arc(x, y, size, 0, 7);
      pen.fill();
    });
    if (lasso.length > 1) {
      pen.strokeStyle = dark ? "#fff" : "#000";
      pen.setLineDash([5, 4]);
      pen.beginPath();
      for (const [x, y] of lasso) pen.lineTo(x, y);
      pen.closePath();
      pen.stroke();
      pen.setLineDash([]);
    }
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    lasso = [at(event)];
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!lasso.length) return;
    lasso.push(at(event));
    paint();
  });
  canvas.addEventListener("pointerup", () => {
    const found = lasso.length > 2 ? points.flatMap((point, index) => (inside(place(point), lasso) ? [index] : [])) : [];
    lasso = [];
    paint();
    if (found.length) onLasso(found);
  });
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
