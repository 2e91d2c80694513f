// Move the controls of a recorded panel from one recorded setting to another, on the sliders of slider.js, which is read
// in before this.
const { controls, settings, answers, pictures, tables } = JSON.parse(document.getElementById("data").textContent);
const panel = document.querySelector(".kd-lab-panel"), canvas = document.createElement("canvas");
const find = (part) => panel.querySelector(part);
const first = find("img"), title = find(".kd-lab-title b"), table = find(".kd-lab-answer"), moved = find(".kd-lab-moved");
const isList = (place) => "options" in controls[place];
const isSlider = (place) => !isList(place);
const inWords = (place, value) => (isList(place) ? value : inUnits(value, controls[place].factor, controls[place].unit));
let here = 0; // the place of the setting that is shown
let touched = [...controls.keys()]; // the places of the controls, the one that was moved last first
const views = controls.map((control, place) => (isList(place) ? addList : addStops)(find(".kd-lab-controls"), control, place));

function addList(parent, { label, options }, place) {
  const name = document.createElement("label"), select = document.createElement("select");
  const recorded = new Set(settings.map((setting) => setting[place]));
  select.append(...options.map((option) => {
    const choice = new Option(option);
    choice.disabled = !recorded.has(option);
    return choice;
  }));
  name.append(`${label} `, select);
  parent.append(name);
  select.addEventListener("change", () => move(place, select.value));
  return () => { select.value = settings[here][place]; };
}

function addStops(parent, { label }, place) {
  const { input, show } = addSlider(parent, label, { min: 0, step: 1 });
  input.addEventListener("input", () => move(place, stops(place)[input.valueAsNumber]));
  return () => {
    const values = stops(place), value = settings[here][place];
    input.max = values.length - 1;
    input.disabled = values.length === 1;
    show(values.indexOf(value), inWords(place, value));
  };
}

function stops(place) { // a slider goes through what is recorded with the lists as they are
  const alike = settings.filter((setting) =>
    setting.every((value, other) => isSlider(other) || value === settings[here][other]));
  return [...new Set(alike.map((setting) => setting[place]))].sort((one, other) => one - other);
}

function move(place, value) {
  const before = settings[here];
  touched = [place, ...touched.filter((other) => other !== place)];
  const others = [...touched.filter(isList), ...touched.filter(isSlider)].filter((other) => other !== place);
  const away = (index) => others.map((other) =>
    isList(other) ? Number(settings[index][other] !== before[other]) : Math.abs(settings[index][other] - before[other]));
  const compare = (one, other) => {
    const [mine, its] = [away(one), away(other)], differing = mine.findIndex((far, at) => far !== its[at]);
    return differing < 0 ? 0 : mine[differing] - its[differing];
  };
  [here] = [...settings.keys()].filter((index) => settings[index][place] === value).sort(compare);
  show(others.filter((other) => settings[here][other] !== before[other]));
}

function show(followed = []) {
  const [words, , rows] = answers[here];
  views.forEach((view) => view());
  title.textContent = words;
  table.innerHTML = tables[rows];
  const where = followed.map((place) => `${controls[place].label} to ${inWords(place, settings[here][place])}`);
  moved.textContent = where.length ? `Not recorded with all other controls as they were, so the nearest: ${where.join(", ")}.` : "";
  draw();
}

async function draw() { // the first picture, and on it what differs from it
  const [words, picture] = answers[here], change = new Image(), wanted = here;
  change.src = `data:image/png;base64,${pictures[picture]}`;
  await Promise.all([first.decode(), change.decode()]);
  if (wanted !== here) return; // a newer one comes
  const pen = canvas.getContext("2d");
  pen.drawImage(first, 0, 0);
  pen.drawImage(change, 0, 0);
  canvas.setAttribute("aria-label", words);
  first.replaceWith(canvas);
}

for (const side of ["width", "height"]) canvas[side] = first.getAttribute(side);
canvas.setAttribute("role", "img");
show();
if (parent !== window) { // the page around may give the frame its height
  new ResizeObserver(() => parent.postMessage({ kdLabHeight: panel.offsetHeight + 16 }, "*")).observe(panel);
}
