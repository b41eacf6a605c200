// The map: dots on a canvas, with a grid of cells to look them up.
const colourings = [["weak", "weak label"], ["probe", "probe"], ["verdict", "verdict"]];
if (rows.truth) colourings.push(["truth", "truth"], ["right", "weak label right or wrong"]);
const CELL = 24;
let grid = new Map();
let places = null;
let hovered = null;
let tapped = null;
const PAD = 14;

function codeOf(kind, row) {
  if (kind === "verdict") return rows.verdict[row];
  if (kind === "truth") return rows.truth[row];
  if (kind === "right") return rows.truth[row] === first("weak", row) ? 0 : 1;
  return first(kind, row);
}
function keyOf(kind) {
  if (kind === "verdict") return VERDICTS.map((name, v) => [name, `--${["kept", "changed", "dropped"][v]}`, `v${v}`]);
  if (kind === "right") return [["right", "--kept", "v0"], ["wrong", "--wrong", "c4"]];
  return classes.map((name, c) => [name, `--c${c % COLOURS}`, `c${c % COLOURS}`]);
}
function paint() {
  const canvas = byId("canvas");
  const scale = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const brush = canvas.getContext("2d");
  brush.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const kind = byId("colour").value;
  const key = keyOf(kind);
  const inks = key.map(([, variable]) => style.getPropertyValue(variable).trim());
  const radius = nRows > 5000 ? 2 : nRows > 1000 ? 2.6 : 3.5;
  places = { x: new Float32Array(nRows), y: new Float32Array(nRows) };
  grid = new Map();
  const counts = new Array(key.length).fill(0);
  const dim = [];
  const bright = [];
  for (let row = 0; row < nRows; row++) {
    const x = PAD + map.x[row] * (width - 2 * PAD);
    const y = height - PAD - map.y[row] * (height - 2 * PAD);
    places.x[row] = x;
    places.y[row] = y;
    const cell = `${Math.floor(x / CELL)},${Math.floor(y / CELL)}`;
    if (!grid.has(cell)) grid.set(cell, []);
    grid.get(cell).push(row);
    counts[codeOf(kind, row)] += 1;
    (matches[row] ? bright : dim).push(row);
  }
  const dot = (row, size) => {
    brush.beginPath();
    brush.arc(places.x[row], places.y[row], size, 0, 2 * Math.PI);
    brush.fill();
  };
  brush.fillStyle = style.getPropertyValue("--line").trim();
  for (const row of dim) dot(row, radius * 0.8);
  brush.globalAlpha = 0.75;
  // The most disagreeing rows come first in the data and are drawn last, on top.
  for (const row of bright.reverse()) {
    brush.fillStyle = inks[codeOf(kind, row)];
    dot(row, radius);
  }
  brush.globalAlpha = 1;
  if (hovered !== null) {
    brush.strokeStyle = style.getPropertyValue("--ink").trim();
    brush.lineWidth = 2;
    brush.beginPath();
    brush.arc(places.x[hovered], places.y[hovered], radius + 3, 0, 2 * Math.PI);
    brush.stroke();
  }
  const legend = byId("legend");
  legend.replaceChildren();
  key.forEach(([name, , mark], code) => {
    if (!counts[code]) return;
    const item = make("li");
    item.append(make("span", `dot ${mark}`), `${name} (${count(counts[code])})`);
    legend.append(item);
  });
}
function under(x, y) {
  let best = null;
  let least = 14 * 14;
  const [cx, cy] = [Math.floor(x / CELL), Math.floor(y / CELL)];
  for (let i = cx - 1; i <= cx + 1; i++) {
    for (let j = cy - 1; j <= cy + 1; j++) {
      for (const row of grid.get(`${i},${j}`) ?? []) {
        // Of dots on top of each other, one that passes the filters wins.
        const far = (places.x[row] - x) ** 2 + (places.y[row] - y) ** 2 + (matches[row] ? 0 : 60);
        if (far < least) [best, least] = [row, far];
      }
    }
  }
  return best;
}
function point(event) {
  const box = byId("canvas").getBoundingClientRect();
  const row = under(event.clientX - box.left, event.clientY - box.top);
  if (row === hovered) return row;
  hovered = row;
  paint();
  const tip = byId("tip");
  tip.hidden = row === null;
  if (row === null) return row;
  tip.replaceChildren(clamp(textOf(row)));
  const line = make("div");
  line.append("weak ", classMark(first("weak", row)), make("span", "small", ` ${percent(firstProb("weak", row))}`));
  const probe = make("div");
  probe.append("probe ", classMark(first("probe", row)), make("span", "small", ` ${percent(firstProb("probe", row))}`));
  const verdict = make("div");
  verdict.append(verdictMark(row));
  tip.append(line, probe, verdict);
  if (rows.truth) {
    const truth = make("div");
    truth.append("truth ", truthMark(row));
    tip.append(truth);
  }
  const stage = byId("stage");
  const left = places.x[row] > stage.clientWidth / 2;
  const top = places.y[row] > stage.clientHeight / 2;
  tip.style.left = left ? "auto" : `${places.x[row] + 14}px`;
  tip.style.right = left ? `${stage.clientWidth - places.x[row] + 14}px` : "auto";
  tip.style.top = top ? "auto" : `${places.y[row] + 14}px`;
  tip.style.bottom = top ? `${stage.clientHeight - places.y[row] + 14}px` : "auto";
  return row;
}
function leave() {
  if (hovered === null) return;
  hovered = null;
  byId("tip").hidden = true;
  paint();
}
function prepareMap() {
  fill(byId("colour"), colourings);
  byId("colour").addEventListener("change", paint);
  const canvas = byId("canvas");
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("click", (event) => {
    const row = point(event);
    // On a touch screen the first tap shows the text, the second opens the row.
    const firstTap = event.pointerType === "touch" && row !== tapped;
    tapped = row;
    if (row === null || firstTap) return;
    tapped = null;
    state.only = row;
    open.add(row);
    leave();
    refresh();
    byId("rows").scrollIntoView();
  });
  window.addEventListener("resize", paint);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", paint);
}
