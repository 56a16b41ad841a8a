// Elements. Every text is set as text, never as markup.

/** Return an element: `properties` are its attributes, `text`, `on` (listeners) or `style` (custom properties). */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (name === "style") for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** Return an element of a drawing. */
export function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Return a button. */
export function button(text, action, properties = {}) {
  return element("button", { type: "button", text, on: { click: action }, ...properties });
}

/** Return a card of the page. */
export function card(title, hint, ...children) {
  return element("div", { class: "card" }, element("h2", { text: title }), hint ? element("p", { class: "quiet", text: hint }) : "", ...children);
}

/** Return a class's hue: far from those of the classes before it. */
export function hueOf(index) {
  return Math.round((158 + index * 137.508) % 360);
}

export const percent = (value, digits = 1) => `${(value * 100).toFixed(digits)} %`;

let hiding = 0;

/** Show a line at the foot of the page for a while; `bad`: something was refused. */
export function say(text, { bad = false } = {}) {
  const place = document.getElementById("message");
  place.textContent = text;
  place.className = bad ? "shown bad" : "shown";
  clearTimeout(hiding);
  hiding = setTimeout(() => (place.className = ""), bad ? 8000 : 3500);
}

/** Show what was refused, or that the server is away: where an action ends that nothing else waits for. */
export const complain = (error) => say(error.message, { bad: true });
