"use strict";
// What the served page does: send what is drawn to every network, and show the answers side by side.

const at = (id) => document.getElementById(id);
const { mean, std } = JSON.parse(at("pixels").textContent); // of MNIST, as the networks were trained
const token = new URLSearchParams(location.search).get("token");
const headers = token ? { Authorization: `Bearer ${token}` } : {};
let drawn = null, running = false, changed = false;

async function ask(path, body) {
  const answer = await fetch(path, { headers, ...(body && { method: "POST", body: JSON.stringify(body) }) });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

async function start() {
  const models = await ask("kit/models");
  for (const { name, version, bytes } of models) {
    const row = at("answers").insertRow();
    row.dataset.path = `v2/models/${name}/versions/${version}/infer`;
    const several = models.filter((other) => other.name === name).length > 1;
    for (const text of [several ? `${name}, version ${version}` : name, "", bytes.toLocaleString("en"), ""])
      row.insertCell().textContent = text;
  }
  createPad(at("pad"), (image) => {
    drawn = image;
    changed = true;
    if (!running) answerNewest();
  });
}

async function answerNewest() { // one drawing at a time: what was drawn in between is passed over
  running = true;
  while (changed) {
    changed = false;
    const image = drawn;
    try {
      for (const row of at("answers").rows) await show(row, image);
      at("said").textContent = image ? "" : "Nothing is drawn yet.";
    } catch (error) {
      at("said").textContent = `The server does not answer: ${error.message}`;
    }
  }
  running = false;
}

async function show(row, image) {
  const [, answer, , time] = row.cells;
  if (!image) return [answer, time].forEach((cell) => cell.replaceChildren());
  const data = Array.from(image, (value) => (value - mean) / std), start = performance.now();
  const input = { name: "images", shape: [1, 1, 28, 28], datatype: "FP32", data };
  const { outputs } = await ask(row.dataset.path, { inputs: [input] });
  const logits = outputs[0].data, best = logits.indexOf(Math.max(...logits));
  const sum = logits.reduce((all, logit) => all + Math.exp(logit - logits[best]), 0);
  const digit = document.createElement("b");
  digit.textContent = best;
  answer.replaceChildren(digit, `${Math.round(100 / sum)} %`);
  time.textContent = (performance.now() - start).toFixed(1);
}

start().catch((error) => (at("said").textContent = `The server does not answer: ${error.message}`));
