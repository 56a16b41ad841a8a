// What a classifier says, on the page: the likeliest label and a bar for each of the next ones.

const SHOWN = 5;
const find = (name) => document.getElementById(name);

// Show {label, unknown, entries} of a model of this task.
export function show({ label, unknown, entries }, task) {
  find("result").replaceChildren(
    ...entries.slice(0, SHOWN).map(({ label: name, value }) => {
      const row = document.createElement("li");
      const bar = document.createElement("meter");
      const text = document.createElement("span");
      const number = document.createElement("b");
      text.textContent = name;
      number.textContent = task === "regression" ? value.toPrecision(4) : `${(100 * value).toFixed(1)} %`;
      bar.value = task === "regression" ? 0 : value;
      bar.hidden = task === "regression";
      row.append(text, number, bar);
      return row;
    }),
  );
  document.body.dataset.label = unknown ? "" : (label ?? "");
  find("label").textContent = unknown ? "none of the known classes" : (label ?? "");
}
