// Shared by all parts of the script: the rows, and the display of labels and verdicts.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const { classes, listed, rows, near, map } = data;
const nRows = rows.id.length;
const VERDICTS = ["kept", "changed", "dropped"];
const COLOURS = 8;

// Everything in a row is shown as text, never as markup.
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
