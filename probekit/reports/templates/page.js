"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const { classes, listed, rows, near, map } = data;
  const many = rows.id.length;
  const VERDICTS = ["kept", "changed", "dropped"];
  const COLOURS = 8;

  // All that a row says goes into the page as text: nothing here reads markup.
  function make(tag, name, text) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  const first = (column, row) => rows[column].class[row * rows.top];
  const firstProb = (column, row) => rows[column].prob[row * rows.top];
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  const count = (value) => value.toLocaleString("en-US");
  const textOf = (row) => (rows.text ? rows.text[row] : rows.id[row]);

  function classMark(code) {
    const mark = make("span", "class");
    mark.append(make("span", `dot c${code % COLOURS}`), classes[code]);
    return mark;
  }
  function verdictMark(row) {
    const mark = make("span", "class");
    const code = rows.verdict[row];
    mark.append(make("span", `dot square v${code}`), VERDICTS[code]);
    if (code === 1) mark.append(` to ${classes[first("label", row)]}`);
    return mark;
  }
  function truthMark(row) {
    const right = rows.truth[row] === first("weak", row);
    const mark = classMark(rows.truth[row]);
    mark.append(make("div", `small t${right ? 0 : 1}`, right ? "✓ as labelled" : "✗ mislabelled"));
    return mark;
  }
  const probeForWeak = (row) => {
    const wanted = first("weak", row);
    for (let i = 0; i < rows.top; i++) {
      if (rows.probe.class[row * rows.top + i] === wanted) return rows.probe.prob[row * rows.top + i];
    }
    return null;
  };

  // Columns of the table: what they are called, what they sort by, what a cell holds.
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
  let matches = new Uint8Array(many).fill(1);

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
    const found = new Array(size).fill(0);
    for (let r = 0; r < listed; r++) found[code(r)] += 1;
    return found;
  };
  function classOptions(column) {
    const found = tally((r) => first(column, r), classes.length);
    return [["", "any"], ...classes.map((name, c) => [String(c), `${name} (${count(found[c])})`])];
  }

  function prepare() {
    const verdicts = tally((r) => rows.verdict[r], 3);
    fill(byId("by-verdict"), [["", "any"], ...VERDICTS.map((name, v) => [String(v), `${name} (${count(verdicts[v])})`]).filter((_, v) => verdicts[v])]);
    fill(byId("by-weak"), classOptions("weak"));
    fill(byId("by-probe"), classOptions("probe"));
    byId("truth-filter").hidden = !rows.truth;
    if (rows.truth) {
      fill(byId("by-truth"), [["", "any"], ["wrong", "weak label wrong"], ["right", "weak label right"], ["probe", "probe right"], ["label", "new label right"], ["lost", "right, yet dropped or changed"], ["missed", "wrong, yet kept as it was"], ...classes.map((name, c) => [String(c), name])]);
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
    matches = new Uint8Array(many);
    for (let row = 0; row < many; row++) matches[row] = fits(row) ? 1 : 0;
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
    const extent = data.total > listed ? ` of the ${count(listed)} most disagreeing` : "";
    const status = byId("status");
    status.textContent = state.only !== null ? "1 row, chosen on the map" : shown.length === listed ? `${count(listed)} rows${extent && ` (the most disagreeing of ${count(data.total)})`}` : `${count(shown.length)} rows${extent || ` of ${count(listed)}`}`;
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
      const said = make("div");
      said.append(classMark(first("weak", other)));
      if (rows.truth) said.append(make("div", `small t${rows.truth[other] === first("weak", other) ? 0 : 1}`, `truth: ${classes[rows.truth[other]]}`));
      item.append(make("span", "small number", near.value[row * near.k + i].toFixed(3)), said, clamp(textOf(other)));
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

  // The map: dots on a canvas, found again through a grid of cells.
  const colourings = [["weak", "weak label"], ["probe", "probe"], ["verdict", "verdict"]].concat(rows.truth ? [["truth", "truth"], ["right", "weak label right or wrong"]] : []);
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
    const radius = many > 5000 ? 2 : many > 1000 ? 2.6 : 3.5;
    places = { x: new Float32Array(many), y: new Float32Array(many) };
    grid = new Map();
    const found = new Array(key.length).fill(0);
    const dim = [];
    const bright = [];
    for (let row = 0; row < many; row++) {
      const x = PAD + map.x[row] * (width - 2 * PAD);
      const y = height - PAD - map.y[row] * (height - 2 * PAD);
      places.x[row] = x;
      places.y[row] = y;
      const cell = `${Math.floor(x / CELL)},${Math.floor(y / CELL)}`;
      if (!grid.has(cell)) grid.set(cell, []);
      grid.get(cell).push(row);
      found[codeOf(kind, row)] += 1;
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
      if (!found[code]) return;
      const item = make("li");
      item.append(make("span", `dot ${mark}`), `${name} (${count(found[code])})`);
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
          // Of dots that lie on each other a listed one that fits the filters is meant.
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
      // A finger has nothing to point with before it taps: the first tap reads, the second opens.
      const first = event.pointerType === "touch" && row !== tapped;
      tapped = row;
      if (row === null || first) return;
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

  prepare();
  if (map) prepareMap();
  const again = () => { Object.assign(state, { page: 0, only: null }); refresh(); };
  let waiting = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(again, 120);
  });
  for (const id of ["by-verdict", "by-weak", "by-probe", "by-truth", "size"]) byId(id).addEventListener("change", again);
  byId("sort").addEventListener("change", (event) => { state.sort = event.target.value; again(); });
  byId("direction").addEventListener("click", () => { state.down = !state.down; again(); });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("clear").addEventListener("click", () => {
    byId("controls").reset();
    Object.assign(state, start);
    open.clear();
    refresh();
  });
  const turn = (page) => { state.page = page; draw(); byId("rows").scrollIntoView(); };
  byId("first").addEventListener("click", () => turn(0));
  byId("before").addEventListener("click", () => turn(state.page - 1));
  byId("after").addEventListener("click", () => turn(state.page + 1));
  byId("last").addEventListener("click", () => turn(Infinity));
  byId("body").addEventListener("click", (event) => {
    const line = event.target.closest(".row");
    if (line && !String(getSelection())) toggle(line);
  });
  refresh();
})();
