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
  const stops = model.get("stops");  // of a slider that goes from one number to the next, whatever lies between them
  const [min, max, step] = stops ? [0, stops.length - 1, 1] : ["min", "max", "step"].map((name) => model.get(name));
  const { input, show } = addSlider(el, model.get("label"), { min, max, step });
  const follow = () => {
    const value = model.get("value"), place = stops ? stops.filter((stop) => stop <= value).length - 1 : value;
    show(place, inUnits(value, model.get("factor"), model.get("unit")));
  };
  input.addEventListener("input", () => {
    model.set("value", stops ? stops[input.valueAsNumber] : input.valueAsNumber);
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
