const add = (parent, tag, properties = {}) => {
  const part = Object.assign(document.createElement(tag), properties);
  parent.append(part);
  return part;
};

function addChoices(parent, model) {
  const group = add(parent, "span", { role: "radiogroup", ariaLabel: model.get("label"), className: "kd-lab-choices" });
  const name = crypto.randomUUID?.() ?? `${Math.random()}`;  // none where the page came over plain http
  const radios = model.get("choices").map((value) => {
    const label = add(group, "label");
    const radio = add(label, "input", { type: "radio", name, value });
    label.append(` ${value}`);
    return radio;
  });
  return {
    get: () => radios.find((radio) => radio.checked)?.value ?? "",
    set: (value) => radios.forEach((radio) => { radio.checked = radio.value === value; }),
  };
}

function addNumber(parent, model) {
  const label = add(parent, "label", { textContent: `${model.get("label")} ` });
  const input = add(label, "input", { type: "text", inputMode: "decimal", size: 8, autocomplete: "off" });
  label.append(` ${model.get("unit")}`);
  return { get: () => input.value, set: (value) => { input.value = value; } };
}

function render({ model, el }) {
  const form = add(el, "form", { className: "kd-lab-prediction" });
  const title = add(form, "div");
  add(title, "b", { textContent: model.get("question") });
  title.append(` ${model.get("tolerance")}`);
  const answer = (model.get("choices").length ? addChoices : addNumber)(form, model);
  const label = add(form, "label", { className: "kd-lab-slider", textContent: "how sure are you?" });
  const sure = add(label, "input", { type: "range", min: model.get("least"), max: model.get("most"), step: 0.05 });
  const readout = add(label, "output");
  add(form, "button", { textContent: "Keep" });
  const message = add(form, "output");  // a screen reader reads it aloud when it changes
  const say = () => {
    sure.ariaLabel = "how sure are you?";
    sure.ariaValueText = readout.textContent = `${Math.round(100 * sure.valueAsNumber)} %`;
  };
  const show = () => {
    answer.set(model.get("answer"));
    sure.value = model.get("sure");
    say();
  };
  const tell = () => { message.textContent = model.get("message"); };
  sure.addEventListener("input", say);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    // all at once: what several widgets send may come in another order
    model.set({ answer: answer.get(), sure: sure.valueAsNumber, presses: model.get("presses") + 1 });
    model.save_changes();
  });
  form.addEventListener("keydown", (event) => {  // else JupyterLab takes arrows and Enter for its own
    if (!event.shiftKey && !event.ctrlKey && !event.metaKey && event.key !== "Escape") event.stopPropagation();
  });
  model.on("change:answer change:sure", show);
  model.on("change:message", tell);
  show();
  tell();
}
export default { render };
