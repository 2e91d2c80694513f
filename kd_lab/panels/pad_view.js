// The pad of deployment/assets/pad.js, which is read in before this, as a widget.
function render({ model, el }) {
  let isMade = false; // a new pad calls at once, with nothing, and would wipe what was drawn on an earlier view of it
  createPad(el, (image) => {
    if (!isMade) return;
    model.set("value", Array.from(image ?? [], (number) => Number(number.toFixed(3))));
    model.save_changes();
  });
  isMade = true;
}
export default { render };
