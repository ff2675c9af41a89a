// The table of layers: sorts, searches, filters; long ones show their beginning until all are asked for.
const FIRST_ROWS = 40;
const COLUMNS = [
  { key: "place", title: "#", n: true, of: (l) => l.place + 1 },
  { key: "name", title: "Layer", of: (l) => l.name },
  { key: "op_type", title: "Type", of: (l) => l.op_type },
  { key: "share", title: "Error share", n: true, of: (l) => l.share, show: share, down: true },
  { key: "alone", title: "Alone", n: true, of: (l) => l.alone, show: dB },
  { key: "together", title: "Accumulated", n: true, of: (l) => l.together, show: dB },
  { key: "cosine", title: "Cosine", n: true, of: (l) => l.together_cosine, show: (x) => (known(x) ? x.toFixed(4) : "–") },
  { key: "clipped", title: "Cut off", n: true, of: (l) => clipped(run(), l), show: share, down: true },
  { key: "before", title: "Float time", n: true, of: (l) => l.seconds_before, show: time, down: true },
  { key: "after", title: "Time now", n: true, of: (l) => l.seconds_after, show: time, down: true },
  { key: "decision", title: "Decision", of: (l) => (l.quantized ? "int8" : "float") },
  { key: "reason", title: "Reason or kernel", text: true, of: (l) => l.reason || l.kernels.join(", ") },
];
const tableState = { sort: "share", up: false, all: false };
const columnsShown = () => {
  const shown = COLUMNS.filter((c) => ["place", "name", "op_type", "decision"].includes(c.key) || run().layers.some((l) => known(c.of(l)) && c.of(l) !== ""));
  if (TWO) shown.splice(6, 0, { key: "difference", title: `Accumulated, ${LETTER[1 - state.run]} − ${LETTER[state.run]}`, n: true, of: (l) => { const two = other().byName.get(l.name); return two && known(two.together) && known(l.together) ? two.together - l.together : null; }, show: (x) => (known(x) ? `${signed(x)} dB` : "–") });
  return shown;
};

function rowsShown() {
  const words = byId("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean), type = byId("filter-type").value, kind = byId("filter-kind").value;
  const column = columnsShown().find((c) => c.key === tableState.sort) || COLUMNS[0];
  const found = run().layers.filter((l) => {
    if (type && l.op_type !== type) return false;
    if (kind === "int8" ? !l.quantized : kind === "float" ? l.quantized : kind === "clipped" ? !((clipped(run(), l) ?? 0) > 0.001) : kind === "slower" ? !(l.seconds_after > l.seconds_before) : false) return false;
    const text = `${l.name} ${l.op_type} ${l.reason} ${l.kernels.join(" ")} ${l.source.join(" ")} ${l.quantized ? "int8" : "float"}`.toLowerCase();
    return words.every((w) => text.includes(w));
  });
  const sign = tableState.up ? 1 : -1;
  return found.sort((a, b) => {
    const x = column.of(a), y = column.of(b);
    if (!known(x) || !known(y)) return known(x) ? -1 : known(y) ? 1 : a.place - b.place;
    return (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y) * sign || a.place - b.place;
  });
}

function drawTable() {
  const shown = columnsShown(), rows = rowsShown(), most = Math.max(...run().layers.map((l) => l.share || 0), 1e-9);
  const cut = tableState.all ? rows : rows.slice(0, FIRST_ROWS);
  const head = h("thead", {}, h("tr", {}, shown.map((c) => h("th", { scope: "col", class: c.n ? "n" : null, "aria-sort": c.key === tableState.sort ? (tableState.up ? "ascending" : "descending") : null },
    h("button", { type: "button", "data-sort": c.key, onclick: () => { tableState.up = tableState.sort === c.key ? !tableState.up : !c.down; tableState.sort = c.key; drawTable(); byId("table").querySelector(`[data-sort="${c.key}"]`).focus(); } }, c.title)))));
  const body = h("tbody", {}, cut.map((l) => h("tr", { "data-layer": l.name, class: l.name === state.chosen ? "chosen" : null }, shown.map((c) => {
    const value = c.of(l), words = c.show ? c.show(value) : known(value) ? `${value}` : "–";
    if (c.key === "name") return h("td", { class: "name" }, h("button", { type: "button", onclick: () => openLayer(l.name) }, l.name));
    if (c.key === "decision") return h("td", {}, h("span", { class: `chip ${l.quantized ? "int" : "float"}` }, words));
    if (c.key === "share" && known(value)) return h("td", { class: "n" }, h("span", { class: "inbar", style: `width:${(46 * value / most).toFixed(1)}px` }), words);
    return h("td", { class: c.n ? "n" : c.text ? "text" : null }, words);
  }))));
  byId("table").replaceChildren(h("caption", { class: "hidden" }, "Layers"), head, body);
  fill("table-note", rows.length === run().layers.length ? plural(rows.length, "layer") : `${rows.length} of ${plural(run().layers.length, "layer")}`, rows.length > cut.length ? `, the first ${cut.length} are shown` : "", ". A click on a name shows the layer, one on a heading sorts.");
  byId("more").hidden = rows.length <= cut.length;
  fill("more", `Show all ${rows.length}`);
}

function setUpTable() {
  const types = [...new Set(run().layers.map((l) => l.op_type))].sort();
  fill("filter-type", h("option", { value: "" }, "all"), types.map((t) => h("option", { value: t }, t)));
  fill("filter-kind", [["", "all"], ["int8", "in integers"], ["float", "in float"], ["clipped", "cut off > 0.1 %"], ["slower", "slower than float"]].map(([value, words]) => h("option", { value }, words)));
  if (!run().layers.some((l) => known(l.share))) { tableState.sort = "place"; tableState.up = true; }
  byId("search").oninput = drawTable;
  byId("filter-type").onchange = drawTable;
  byId("filter-kind").onchange = drawTable;
  byId("more").onclick = () => { tableState.all = true; drawTable(); };
  drawTable();
}
function saveCsv() {
  const shown = columnsShown().map((c) => (c.key === "reason" ? { title: "Reason", of: (l) => l.reason } : c));
  const more = [{ title: "Kernels", of: (l) => l.kernels.join(" ") }, { title: "Source nodes", of: (l) => l.source.join(" ") }, { title: "Effect (noise/signal)", of: (l) => l.effect }, { title: "Multiplications", of: (l) => l.multiplications }];
  download(`${fileName("layers")}.csv`, "text/csv", csvOf([[...shown, ...more].map((c) => c.title), ...run().layers.map((l) => [...shown, ...more].map((c) => c.of(l)))]));
}
