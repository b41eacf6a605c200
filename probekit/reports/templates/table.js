// The table of rows: sorted, searched, filtered, page by page; each row opens.

// Columns of the table: name, sort key and cell.
const columns = [
  { key: "text", name: rows.text ? "Text" : "Id", sort: (r) => textOf(r).toLowerCase() },
  { key: "disagreement", name: "Disagreement", sort: (r) => rows.disagreement[r], cell: disagreementCell },
  { key: "weak", name: "Weak label", sort: (r) => 2 * first("weak", r) - firstProb("weak", r), cell: (r) => classCell("weak", r) },
  { key: "probe", name: "Probe", sort: (r) => 2 * first("probe", r) - firstProb("probe", r), cell: (r) => classCell("probe", r) },
  { key: "verdict", name: "Verdict", sort: (r) => rows.verdict[r], cell: verdictMark },
];
if (rows.truth) columns.push({ key: "truth", name: "Truth", sort: (r) => 2 * rows.truth[r] + (rows.truth[r] === first("weak", r)), cell: truthMark });
const sorts = columns.concat(
  { key: "probability", name: "Probe's probability of the weak label", sort: (r) => probeForWeak(r) ?? 0 },
  { key: "length", name: "Length of the text", sort: (r) => (rows.text ? rows.text[r].length + rows.cut[r] : 0) },
  { key: "id", name: "Id", sort: (r) => rows.id[r] },
).filter((each) => rows.text || each.key !== "length" && each.key !== "id");

function disagreementCell(row) {
  const cell = make("span", "number", rows.disagreement[row].toFixed(3));
  const bar = make("span", "bar");
  const full = make("span");
  full.style.width = `${100 * rows.disagreement[row]}%`;
  bar.append(full);
  cell.append(bar);
  return cell;
}
function classCell(column, row) {
  const cell = make("span");
  cell.append(classMark(first(column, row)), make("div", "small number", percent(firstProb(column, row))));
  return cell;
}

const start = { sort: "disagreement", down: true, page: 0, only: null };
const state = { ...start };
const open = new Set();
const lower = new Map();
let shown = [];
let matches = new Uint8Array(nRows).fill(1);

const searched = (row) => {
  if (!lower.has(row)) lower.set(row, `${rows.id[row]}\n${rows.text ? rows.text[row] : ""}`.toLowerCase());
  return lower.get(row);
};
function fill(select, options) {
  for (const [value, name] of options) {
    const option = make("option", "", name);
    option.value = value;
    select.append(option);
  }
}
const tally = (code, size) => {
  const counts = new Array(size).fill(0);
  for (let r = 0; r < listed; r++) counts[code(r)] += 1;
  return counts;
};
function classOptions(column) {
  const counts = tally((r) => first(column, r), classes.length);
  return [["", "any"], ...classes.map((name, c) => [String(c), `${name} (${count(counts[c])})`])];
}

function prepare() {
  const verdicts = tally((r) => rows.verdict[r], 3);
  fill(byId("by-verdict"), [["", "any"], ...VERDICTS.map((name, v) => [String(v), `${name} (${count(verdicts[v])})`]).filter((_, v) => verdicts[v])]);
  fill(byId("by-weak"), classOptions("weak"));
  fill(byId("by-probe"), classOptions("probe"));
  byId("truth-filter").hidden = !rows.truth;
  if (rows.truth) {
    const kinds = [
      ["", "any"],
      ["wrong", "weak label wrong"],
      ["right", "weak label right"],
      ["probe", "probe right"],
      ["label", "new label right"],
      ["lost", "right, yet dropped or changed"],
      ["missed", "wrong, yet kept as it was"],
    ];
    fill(byId("by-truth"), [...kinds, ...classes.map((name, c) => [String(c), name])]);
  }
  fill(byId("sort"), sorts.map((each) => [each.key, each.name]));
  for (const each of columns) {
    const head = make("th", `k-${each.key}`);
    head.scope = "col";
    const button = make("button", "", each.name);
    button.type = "button";
    button.addEventListener("click", () => {
      if (state.sort === each.key) state.down = !state.down;
      else Object.assign(state, { sort: each.key, down: each.key === "disagreement" });
      state.page = 0;
      refresh();
    });
    head.append(button);
    byId("head").append(head);
  }
  byId("controls").hidden = false;
  byId("pager").hidden = false;
  byId("size").value = "50";
}

function truthMatches(wanted, row) {
  if (!wanted) return true;
  const truth = rows.truth[row];
  const right = first("weak", row) === truth;
  switch (wanted) {
    case "wrong": return !right;
    case "right": return right;
    case "probe": return first("probe", row) === truth;
    case "label": return first("label", row) === truth;
    case "lost": return right && rows.verdict[row] !== 0;
    case "missed": return !right && rows.verdict[row] === 0;
    default: return truth === Number(wanted);
  }
}
function choose() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const verdict = byId("by-verdict").value;
  const weak = byId("by-weak").value;
  const probe = byId("by-probe").value;
  const truth = rows.truth ? byId("by-truth").value : "";
  const fits = (row) =>
    (verdict === "" || rows.verdict[row] === Number(verdict)) &&
    (weak === "" || first("weak", row) === Number(weak)) &&
    (probe === "" || first("probe", row) === Number(probe)) &&
    truthMatches(truth, row) &&
    words.every((word) => searched(row).includes(word));
  matches = new Uint8Array(nRows);
  for (let row = 0; row < nRows; row++) matches[row] = fits(row) ? 1 : 0;
  shown = [];
  if (state.only !== null) shown.push(state.only);
  else for (let row = 0; row < listed; row++) if (matches[row]) shown.push(row);
  const key = sorts.find((each) => each.key === state.sort).sort;
  const keys = new Map(shown.map((row) => [row, key(row)]));
  const sign = state.down ? -1 : 1;
  shown.sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    return x < y ? -sign : x > y ? sign : a - b;
  });
}

// The number of rows shown, and of all rows.
function extent() {
  if (state.only !== null) return "1 row, chosen on the map";
  const cut = data.total > listed;
  if (shown.length < listed) {
    return `${count(shown.length)} rows of ${cut ? "the " : ""}${count(listed)}${cut ? " most disagreeing" : ""}`;
  }
  return `${count(listed)} rows${cut ? ` (the most disagreeing of ${count(data.total)})` : ""}`;
}
function clamp(text, name) {
  return make("div", `clamp${name ? ` ${name}` : ""}`, text);
}
function draw() {
  const size = Number(byId("size").value);
  const pages = Math.max(1, Math.ceil(shown.length / size));
  state.page = Math.min(state.page, pages - 1);
  const body = byId("body");
  body.replaceChildren();
  for (const row of shown.slice(state.page * size, (state.page + 1) * size)) {
    body.append(rowElement(row));
    if (open.has(row)) body.append(detail(row));
  }
  const status = byId("status");
  status.textContent = extent();
  if (state.only !== null) {
    const back = make("button", "", "Show all");
    back.type = "button";
    back.addEventListener("click", () => { state.only = null; refresh(); });
    status.append(back);
  }
  byId("where").textContent = `page ${count(state.page + 1)} of ${count(pages)}`;
  byId("first").disabled = byId("before").disabled = state.page === 0;
  byId("after").disabled = byId("last").disabled = state.page === pages - 1;
  for (const head of byId("head").children) {
    const key = head.className.slice(2);
    if (key === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  byId("sort").value = state.sort;
  byId("direction").textContent = state.down ? "Descending" : "Ascending";
}
function rowElement(row) {
  const line = make("tr", open.has(row) ? "row open" : "row");
  line.dataset.row = row;
  for (const each of columns) {
    const cell = make("td", `k-${each.key}`);
    if (each.key === "text") {
      const button = make("button", "opener");
      button.type = "button";
      button.setAttribute("aria-expanded", String(open.has(row)));
      const inner = make("div", "cell-text");
      inner.append(make("span", "mark", open.has(row) ? "▾" : "▸"), clamp(textOf(row)));
      button.append(inner);
      cell.append(button);
    } else {
      cell.dataset.label = each.name;
      cell.append(each.cell(row));
    }
    line.append(cell);
  }
  return line;
}
function toggle(line) {
  const row = Number(line.dataset.row);
  const focused = line.contains(document.activeElement);
  if (open.delete(row)) line.nextElementSibling.remove();
  else {
    open.add(row);
    line.after(detail(row));
  }
  const again = rowElement(row);
  line.replaceWith(again);
  if (focused) again.querySelector("button").focus();
}

function distribution(name, column, row) {
  const part = make("div");
  part.append(make("div", "small", name));
  const list = make("ul");
  for (let i = 0; i < rows.top; i++) {
    const at = row * rows.top + i;
    const item = make("li");
    item.append(classMark(rows[column].class[at]), make("span", "number", ` ${percent(rows[column].prob[at])}`));
    list.append(item);
  }
  if (rows.top < classes.length) list.append(make("li", "small", `… ${classes.length - rows.top} more classes`));
  part.append(list);
  return part;
}
function detail(row) {
  const line = make("tr", "detail");
  const cell = make("td");
  cell.colSpan = columns.length;
  if (rows.text) {
    cell.append(make("div", "full", rows.text[row]));
    if (rows.cut[row]) cell.append(make("p", "small", `… ${count(rows.cut[row])} more characters`));
  }
  const sides = make("div", "sides");
  sides.append(distribution("Weak label", "weak", row), distribution("Probe", "probe", row));
  sides.append(distribution(rows.verdict[row] === 2 ? "Label (not trained on)" : "Label to train on", "label", row));
  const facts = make("div");
  facts.append(make("div", "small", "Row"), make("div", "class", rows.id[row]));
  facts.append(make("div", "small", rows.fold[row] < 0 ? "predicted with the row itself left out" : `predicted by fold ${rows.fold[row]}`));
  if (rows.truth) facts.append(truthMark(row));
  sides.append(facts);
  cell.append(sides);
  if (near && row < listed) cell.append(...neighbours(row));
  line.append(cell);
  return line;
}
function neighbours(row) {
  const wanted = first("weak", row);
  const list = make("ol", "near");
  let same = 0;
  for (let i = 0; i < near.k; i++) {
    const other = near.index[row * near.k + i];
    same += first("weak", other) === wanted;
    const item = make("li");
    const label = make("div");
    label.append(classMark(first("weak", other)));
    if (rows.truth) label.append(make("div", `small t${rows.truth[other] === first("weak", other) ? 0 : 1}`, `truth: ${classes[rows.truth[other]]}`));
    item.append(make("span", "small number", near.value[row * near.k + i].toFixed(3)), label, clamp(textOf(other)));
    list.append(item);
  }
  const title = make("h3", "", `Nearest rows: ${same} of ${near.k} carry the weak label “${classes[wanted]}”`);
  return [title, make("p", "small", `${near.measure}, weak label${rows.truth ? " and truth" : ""}, text`), list];
}

function refresh() {
  choose();
  draw();
  if (map) paint();
}
