function render({ model, el }) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const readout = document.createElement("output");
  input.type = "range";
  Object.assign(input, { min: model.get("min"), max: model.get("max"), step: model.get("step") });
  label.append(model.get("label"), input, readout);
  label.className = "kd-lab-slider";
  el.append(label);
  const show = () => {
    const number = Number((model.get("factor") * model.get("value")).toFixed(2));
    const unit = model.get("unit") + (model.get("unit") === "bit" && number !== 1 ? "s" : "");
    const text = (number + " " + unit).trim();
    input.value = model.get("value");
    input.ariaLabel = model.get("label");
    input.ariaValueText = text;
    readout.textContent = text;
  };
  input.addEventListener("input", () => {
    model.set("value", input.valueAsNumber);
    model.save_changes();
  });
  const moving = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"];
  input.addEventListener("keydown", (event) => {  // else JupyterLab takes them for moves between cells
    if (moving.includes(event.key)) event.stopPropagation();
  });
  model.on("change:value", show);
  show();
}
export default { render };
