// A number in its unit, as the sliders say it.
function inUnits(value, factor, unit) {
  const number = Number((factor * value).toFixed(2));
  return `${number} ${unit}${unit === "bit" && number !== 1 ? "s" : ""}`.trim();
}
// Add a slider with a name and, beside it, what it says; show(value, text) moves it.
function addSlider(el, name, range) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const readout = document.createElement("output");
  input.type = "range";
  Object.assign(input, range);
  label.append(name, input, readout);
  label.className = "kd-lab-slider";
  el.append(label);
  const show = (value, text) => {
    input.value = value;
    input.ariaLabel = name;
    input.ariaValueText = text;
    readout.textContent = text;
  };
  return { input, show };
}
function render({ model, el }) {
  const range = { min: model.get("min"), max: model.get("max"), step: model.get("step") };
  const { input, show } = addSlider(el, model.get("label"), range);
  const follow = () => show(model.get("value"), inUnits(model.get("value"), model.get("factor"), model.get("unit")));
  input.addEventListener("input", () => {
    model.set("value", input.valueAsNumber);
    model.save_changes();
  });
  const moving = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"];
  input.addEventListener("keydown", (event) => {  // else JupyterLab takes them for moves between cells
    if (moving.includes(event.key)) event.stopPropagation();
  });
  model.on("change:value", follow);
  follow();
}
export default { render };
