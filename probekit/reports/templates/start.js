// Event handlers, and the first drawing.

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
