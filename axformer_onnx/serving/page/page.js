"use strict";
// Asks the server that this page came from, and nobody else; everything is put on the page as text.
const at = (id) => document.getElementById(id);
const MOST_BARS = 20;
let model = null;

async function json(url, options) {
  const response = await fetch(url, options);
  const content = await response.json();
  if (!response.ok) throw new Error(content.error || `${response.status} ${response.statusText}`);
  return content;
}

function spoken(column) {
  const words = column.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

async function start() {
  const server = await json("v2");
  model = await json(`v2/models/${encodeURIComponent(server.parameters.model)}`);
  const { task, kind, columns, texts, max_length } = model.parameters;
  document.title = model.name;
  at("name").textContent = model.name;
  const what = task === kind || task === "custom" ? kind : `${kind}, ${task}`;
  at("about").textContent = `${what}; up to ${max_length} tokens`;
  if (texts === columns.length) at("label-a").textContent = spoken(columns[0]);
  if (texts === 2) at("label-b").textContent = spoken(columns[1]);
  if (texts === 1) at("second").remove();
  const given = new URLSearchParams(location.search);
  for (const id of ["a", "b"]) if (given.has(id) && at(id)) at(id).value = given.get(id);
  if (given.has("a")) await ask();
}

function tensor(name, text) {
  return { name, shape: [1], datatype: "BYTES", data: [text] };
}

async function ask() {
  const second = at("b") ? at("b").value : "";
  const inputs = [tensor("text", at("a").value)];
  if (second) inputs.push(tensor("text_pair", second));
  at("error").hidden = true;
  const begun = performance.now();
  const answer = await json(`v2/models/${encodeURIComponent(model.name)}/infer`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ inputs }),
  });
  show(answer, performance.now() - begun);
}

function show(answer, milliseconds) {
  const outputs = Object.fromEntries(answer.outputs.map((one) => [one.name, one.data]));
  const values = answer.outputs[0].data;
  at("answer").hidden = false;
  at("word").textContent = outputs.label ? outputs.label[0] : values.length === 1 ? values[0].toFixed(3) : `${values.length} numbers`;
  at("bars").replaceChildren(...(outputs.probabilities ? bars(outputs.probabilities) : numbers(values)));
  const { queue_ms, run_ms, tokens, truncated } = answer.parameters;
  const cut = truncated ? `, cut at ${tokens}` : "";
  at("times").textContent =
    `${milliseconds.toFixed(1)} ms there and back: ${run_ms.toFixed(1)} ms in the model, ${queue_ms.toFixed(1)} ms in the queue; ` +
    `${tokens} tokens${cut}`;
}

function bars(probabilities) {
  const named = probabilities.map((share, i) => ({ share, name: model.parameters.labels[i] ?? String(i) }));
  const many = named.length > MOST_BARS;
  const shown = many ? named.sort((a, b) => b.share - a.share).slice(0, MOST_BARS) : named;
  const most = Math.max(...probabilities);
  const given = (share) => (model.parameters.kind === "multilabel" ? share > 0.5 : share === most);
  return shown.map(({ share, name }) => {
    const bar = element("div", given(share) ? "bar best" : "bar");
    const track = element("div", "track"), fill = element("div", "fill");
    fill.style.width = `${100 * share}%`;
    track.append(fill);
    bar.append(element("span", "", name), track, element("span", "share", `${(100 * share).toFixed(1)} %`));
    return bar;
  });
}

function numbers(values) {
  if (values.length === 1) return [];
  const first = values.slice(0, 8).map((one) => one.toFixed(3)).join(", ");
  return [element("pre", "", values.length > 8 ? `${first}, ...` : first)];
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function told(error) {
  at("answer").hidden = true;
  at("error").hidden = false;
  at("error").textContent = error.message === "Failed to fetch" ? "The server does not answer. Is it running?" : error.message;
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask().catch(told);
});
at("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask().catch(told);
});
start().catch(told);
