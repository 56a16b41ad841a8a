// The addresses under /api, and what the server tells by itself.

/** What the server refused: its line, and the status. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function answer(response) {
  if (response.ok) return response;
  let line = response.statusText;
  try {
    line = (await response.json()).error;
  } catch {
    // no line came with it: the status has to do
  }
  throw new Refused(response.status, line);
}

/** Return the JSON at `path`. */
export async function get(path, query = {}) {
  const set = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const text = new URLSearchParams(set).toString();
  return (await answer(await fetch(`/api${path}${text && `?${text}`}`))).json();
}

/** Return the text at `path`. */
export async function getText(path) {
  return (await answer(await fetch(`/api${path}`))).text();
}

/** Send `values` as JSON and return the JSON that comes back. */
export async function post(path, values = {}) {
  const headers = { "Content-Type": "application/json" };
  return (await answer(await fetch(`/api${path}`, { method: "POST", headers, body: JSON.stringify(values) }))).json();
}

/** Send a file as it is. */
export async function send(method, path, query, file) {
  const headers = { "Content-Type": "application/octet-stream" };
  const address = `/api${path}?${new URLSearchParams(query)}`;
  return (await answer(await fetch(address, { method, headers, body: file }))).json();
}

/**
 * Tell `listener(event, values)` of everything that happens; "open" after each new connection.
 *
 * A browser has six connections to one server, for all its windows: one that is out of sight gives its own back.
 */
export function listen(listener) {
  let source = null;
  const close = () => (source?.close(), (source = null));
  const open = () => {
    if (source) return;
    source = new EventSource("/api/events");
    source.addEventListener("open", () => listener("open", {}));
    source.addEventListener("error", () => listener("lost", {}));
    for (const name of ["labels", "classes", "head", "job", "workspace"]) {
      source.addEventListener(name, (event) => listener(name, JSON.parse(event.data)));
    }
  };
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  open();
}
