// A pad to draw a digit on: createPad(element, onDigit) calls onDigit(784 numbers from 0 to 1, or null) after each change.
function createPad(element, onDigit) {
  const SIZE = 280, STEP = 14, canvas = document.createElement("canvas"), clear = document.createElement("button");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let pen = { x: SIZE / 2, y: SIZE / 2 };
  canvas.width = canvas.height = SIZE;
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.ariaLabel = "Draw a digit: with a mouse or finger, or move the pen with the arrow keys and draw with Shift held";
  canvas.style.cssText = "display:block;width:100%;max-width:280px;aspect-ratio:1;background:#000;border-radius:8px;touch-action:none";
  clear.type = "button";
  clear.textContent = "Clear";
  Object.assign(context, { lineWidth: 20, lineCap: "round", lineJoin: "round", strokeStyle: "#fff", fillStyle: "#000" });
  element.append(canvas, clear);

  function lineTo(x, y) {
    context.beginPath();
    context.moveTo(pen.x, pen.y);
    context.lineTo(x, y);
    context.stroke();
    pen = { x, y };
    onDigit(digit());
  }
  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * SIZE) / box.width, ((event.clientY - box.top) * SIZE) / box.height];
  }
  function wipe() {
    context.fillRect(0, 0, SIZE, SIZE);
    onDigit(null);
  }
  function digit() { // in a box of 20 × 20, its centre of mass in the middle of 28 × 28
    const { data } = context.getImageData(0, 0, SIZE, SIZE), ink = [];
    for (let at = 0; at < SIZE * SIZE; at++) if (data[4 * at]) ink.push([at % SIZE, Math.floor(at / SIZE), data[4 * at] / 255]);
    if (!ink.length) return null;
    const [left, right, top, bottom] = [0, 1].flatMap((axis) =>
      ink.reduce(([low, high], dot) => [Math.min(low, dot[axis]), Math.max(high, dot[axis])], [SIZE, 0]));
    const scale = 20 / (1 + Math.max(right - left, bottom - top)), sum = ink.reduce((all, dot) => all + dot[2], 0);
    const [x, y] = [0, 1].map((axis) => 14 - (scale * ink.reduce((all, dot) => all + dot[axis] * dot[2], 0)) / sum);
    const image = new Float32Array(784);
    for (const dot of ink) {
      const column = Math.floor(scale * dot[0] + x), row = Math.floor(scale * dot[1] + y);
      if (column >= 0 && row >= 0 && column < 28 && row < 28) image[28 * row + column] += dot[2] * scale * scale;
    }
    return image.map((value) => Math.min(value, 1));
  }
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    [pen.x, pen.y] = place(event);
    lineTo(pen.x, pen.y);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) lineTo(...place(event)); // and not one that comes in from outside
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Delete") wipe();
    if (!move) return;
    event.preventDefault();
    const [x, y] = [pen.x + STEP * move[0], pen.y + STEP * move[1]].map((to) => Math.min(Math.max(to, 10), SIZE - 10));
    if (event.shiftKey) lineTo(x, y);
    else pen = { x, y };
  });
  clear.addEventListener("click", wipe);
  wipe();
}
