"use strict";
// What the page shows: the answers to what is drawn, and what is left of them when the network is broken.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const digits = readDigits();
let network, drawn = null;

function readDigits() {
  const [dtype, [count, size]] = data.digits.tensors[0];
  const pixels = new RangeReader(data.digits.coded).tensor([dtype, [count, size]]).map((value) => value / 255);
  return Array.from({ length: count }, (_, place) => pixels.subarray(place * size, (place + 1) * size));
}

function choose(place) {
  network = new Network(data.networks[place], data);
  const count = network.answers.filter((answer, digit) => answer === network.answer(digits[digit])).length;
  at("about").textContent = `${network.name}, in ${network.bytes.toLocaleString("en")} bytes: ` +
    `${network.kept.toLocaleString("en")} weights are not zero. It runs here, in your browser.`;
  at("check").textContent = count === digits.length
    ? `This browser answers ${count} of ${digits.length} stored digits as torch did.`
    : `This browser answers only ${count} of ${digits.length} stored digits as torch did. Don't trust it.`;
  at("bars").replaceChildren(...Array.from(network.logits(digits[0]), (_, answer) => barOf(answer)));
  damage();
}

function barOf(answer) {
  const row = document.createElement("li"), name = document.createElement("b");
  name.textContent = answer;
  row.append(name, document.createElement("i"), document.createElement("span"));
  return row;
}

function damage() {
  const how = document.querySelector("input[name=how]:checked").value, amount = at("amount").valueAsNumber / 100;
  if (how === "prune") network.prune(amount);
  else network.addNoise(2 * amount);
  const same = network.answers.filter((answer, digit) => answer === network.answer(digits[digit])).length;
  const left = network.layers.reduce((sum, { values }) => sum + values.filter((value) => value).length, 0);
  const done = how === "prune"
    ? `${left.toLocaleString("en")} of ${network.kept.toLocaleString("en")} weights are left`
    : `Noise of ${Math.round(200 * amount)} % of the weights' size`;
  at("broken").textContent = `${done}: ${same} of ${digits.length} stored digits are answered as before.`;
  at("amount").ariaValueText = done;
  show();
}

function show() {
  const shares = drawn ? softmax(network.logits(drawn)) : null;
  const best = shares ? shares.indexOf(Math.max(...shares)) : -1;
  at("answer").textContent = shares ? `It is a ${best}.` : "Nothing is drawn yet.";
  Array.from(at("bars").children).forEach((row, answer) => {
    const percent = shares ? 100 * shares[answer] : 0;
    row.className = answer === best ? "best" : "";
    row.children[1].style.setProperty("--share", `${percent}%`);
    row.children[2].textContent = shares ? `${percent.toFixed(0)} %` : "";
  });
}

function softmax(logits) {
  const largest = Math.max(...logits), powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

// For tests: the answers to digits, each of them 784 bytes, in a row.
function selfTest(bytes) {
  const answers = [];
  for (let start = 0; start < bytes.length; start += 784) {
    answers.push(network.answer(Float64Array.from(bytes.subarray(start, start + 784)).map((value) => value / 255)));
  }
  return answers;
}

at("network").append(...data.networks.map(({ name }, place) => new Option(name, place)));
at("choice").hidden = data.networks.length === 1;
at("network").addEventListener("change", () => choose(at("network").selectedIndex));
at("break").addEventListener("input", damage);
createPad(at("pad"), (image) => {
  drawn = image;
  show();
});
choose(0);
