"""Give a slider that the keyboard moves, a screen reader names, and that refuses what lies outside its range."""

import anywidget
import traitlets

from kd_lab.errors import check_number


class _Fraction(traitlets.TraitType):
    """Check a value where it is set; a validator of the widget would be passed over by what the browser sends."""

    def validate(self, slider: "FractionSlider", value: object) -> float:
        slider.check("slider", value)
        return float(value)


class FractionSlider(anywidget.AnyWidget):
    """Choose a fraction, shown in percent.

    The browser's own range input: ipywidgets' slider has a handle without a name, and silently clamps what a program
    sets.
    """

    _esm = """
    function render({ model, el }) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      const readout = document.createElement("output");
      input.type = "range";
      Object.assign(input, { min: 0, max: model.get("max"), step: 0.01 });
      label.append(model.get("label"), input, readout);
      label.className = "kd-lab-slider";
      el.append(label);
      const show = () => {
        const percent = Number((100 * model.get("value")).toFixed(2)) + " %";
        input.value = model.get("value");
        input.ariaLabel = model.get("label");
        input.ariaValueText = percent;
        readout.textContent = percent;
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
    """
    _css = """
    .kd-lab-slider { display: flex; align-items: center; gap: 10px; }
    .kd-lab-slider input { flex: 1; }
    .kd-lab-slider output { width: 4em; font-variant-numeric: tabular-nums; }
    """
    label = traitlets.Unicode().tag(sync=True)
    max = traitlets.Float(1.0).tag(sync=True)
    value = _Fraction(0.0).tag(sync=True)

    def check(self, function: str, value: object) -> None:
        """Raise a ParameterError, in the name of `function`, for a value that the slider can't stand at."""
        check_number(function, self.label, value, f"[0, {self.max:g}]")
