// Renders /openapi.json. Every text is set as text, never as markup.

const VERBS = ["get", "post", "put", "delete"];

function element(tag, text = "", ...children) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...children);
  return made;
}

function resolve(document_, schema) {
  if (!schema?.$ref) return schema ?? {};
  return schema.$ref.slice(2).split("/").reduce((part, key) => part[key], document_);
}

/** Return an example of what `schema` describes. */
function example(document_, schema, depth = 0) {
  const found = resolve(document_, schema);
  if (found.example !== undefined) return found.example;
  if (found.examples?.length) return found.examples[0];
  if (found.const !== undefined) return found.const;
  if (found.anyOf) return example(document_, found.anyOf[0], depth);
  if (depth > 6) return null;
  switch (found.type) {
    case "object": {
      const properties = Object.entries(found.properties ?? {});
      return Object.fromEntries(properties.map(([name, inner]) => [name, example(document_, inner, depth + 1)]));
    }
    case "array":
      return resolve(document_, found.items).examples ?? [example(document_, found.items, depth + 1)];
    case "integer":
    case "number":
      return 1;
    case "boolean":
      return true;
    default:
      return found.type ?? null;
  }
}

function curl(path, verb, operation) {
  const address = `${location.origin}${path}`;
  const content = operation.requestBody?.content ?? {};
  if (verb === "get") return `curl ${address}`;
  if (content["multipart/form-data"]) {
    const files = `curl -F files=@one.jpg -F files=@two.png ${address}\ncurl --data-binary @one.jpg ${address}`;
    const texts = content["application/json"]?.example;
    return texts ? `${files}\ncurl -H 'Content-Type: application/json' -d '${JSON.stringify(texts)}' ${address}` : files;
  }
  const body = content["application/json"]?.example;
  return `curl -H 'Content-Type: application/json' -d '${JSON.stringify(body ?? {})}' ${address}`;
}

function parameters(list) {
  const body = element("tbody");
  for (const one of list) {
    const words = `${one.in}${one.required ? ", required" : ""}`;
    const meaning = one.description ?? one.schema?.description ?? "";
    body.append(element("tr", "", element("td", "", element("code", one.name)), element("td", words), element("td", meaning)));
  }
  return element("table", "", body);
}

function answers(document_, responses) {
  const body = element("tbody");
  for (const [status, response] of Object.entries(responses)) {
    const shown = response.content?.["application/json"];
    const value = shown && (shown.example ?? example(document_, shown.schema));
    const cell = element("td", response.description ?? "");
    if (value !== undefined) cell.append(element("pre", JSON.stringify(value, null, 1)));
    body.append(element("tr", "", element("td", "", element("code", status)), cell));
  }
  return element("table", "", body);
}

function entry(document_, path, verb, operation) {
  const method = element("span", `${verb.toUpperCase()} `);
  method.className = "method";
  const summary = element("summary", "", method, element("code", path), ` ${operation.summary ?? ""}`);
  const made = element("details", "", summary);
  if (operation.requestBody?.description) made.append(element("p", operation.requestBody.description));
  made.append(element("pre", curl(path, verb, operation)));
  if (operation.parameters?.length) made.append(element("h3", "Parameters"), parameters(operation.parameters));
  made.append(element("h3", "Answers"), answers(document_, operation.responses ?? {}));
  return made;
}

function render(document_, page) {
  const title = element("h1", `${document_.info.title} `, element("small", document_.info.version));
  page.replaceChildren(title, element("p", document_.info.description ?? ""));
  const sections = new Map();
  for (const [path, operations] of Object.entries(document_.paths)) {
    for (const verb of VERBS.filter((one) => operations[one])) {
      const tag = operations[verb].tags?.[0] ?? "others";
      if (!sections.has(tag)) sections.set(tag, element("section", "", element("h2", tag)));
      sections.get(tag).append(entry(document_, path, verb, operations[verb]));
    }
  }
  page.append(...sections.values());
}

const page = document.getElementById("page");
try {
  render(await (await fetch("/openapi.json")).json(), page);
} catch (error) {
  page.replaceChildren(element("p", `/openapi.json cannot be shown: ${error.message}`));
}
page.setAttribute("aria-busy", "false");
