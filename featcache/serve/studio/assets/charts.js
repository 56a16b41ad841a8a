// Small drawings: a share with its interval, and how it grew with the labels.

import { drawn, element, percent } from "./dom.js";
import { t } from "./texts.js";

/** Return a bar from 0 to 1 on which an interval and its middle are marked. */
export function intervalBar(low, high, middle) {
  const bar = element("div", { class: "interval", "aria-hidden": "true" });
  const range = element("span", { class: "range" });
  range.style.left = `${low * 100}%`;
  range.style.width = `${(high - low) * 100}%`;
  const mark = element("span", { class: "middle" });
  mark.style.left = `${middle * 100}%`;
  bar.append(range, mark);
  return bar;
}

/** Return the curve of `points` ({labels, correct, held_out, low, high}) over the number of labels. */
export function curve(points, { width = 520, height = 220 } = {}) {
  const shown = points.filter((point) => point.held_out > 0).sort((one, other) => one.labels - other.labels);
  if (shown.length < 2) return element("p", { class: "quiet", text: t("curve_empty") });
  const [left, right, top, bottom] = [44, 12, 12, 30];
  const most = Math.max(...shown.map((point) => point.labels));
  const x = (labels) => left + (labels / most) * (width - left - right);
  const y = (share) => top + (1 - share) * (height - top - bottom);
  const share = (point) => point.correct / point.held_out;
  const path = (list, value) => list.map((point, i) => `${i ? "L" : "M"}${x(point.labels).toFixed(1)} ${y(value(point)).toFixed(1)}`).join("");
  const band = `${path(shown, (point) => point.high)}${path([...shown].reverse(), (point) => point.low).replace("M", "L")}Z`;
  const last = shown.at(-1);
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, class: "curve", role: "img", "aria-label": `${t("accuracy_over_labels")}: ${percent(share(last))}` });
  for (const line of [0, 0.25, 0.5, 0.75, 1]) {
    picture.append(
      drawn("line", { x1: left, x2: width - right, y1: y(line), y2: y(line), class: "rule" }),
      drawn("text", { x: left - 8, y: y(line) + 4, class: "axis", "text-anchor": "end", text: `${line * 100} %` }),
    );
  }
  for (const part of [0, 0.5, 1]) {
    const labels = Math.round(most * part);
    picture.append(drawn("text", { x: x(labels), y: height - 8, class: "axis", "text-anchor": part === 1 ? "end" : part ? "middle" : "start", text: labels }));
  }
  picture.append(
    drawn("path", { d: band, class: "band" }),
    drawn("path", { d: path(shown, share), class: "line" }),
    drawn("circle", { cx: x(last.labels), cy: y(share(last)), r: 4, class: "dot" }),
  );
  return picture;
}
