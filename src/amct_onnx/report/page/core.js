// The data of the page, and what every part of it uses: elements, numbers as text, downloads.
const RUNS = JSON.parse(document.getElementById("data").textContent);
const TWO = RUNS.length > 1;
const LETTER = ["A", "B"];
const state = { run: 0, chosen: "", opened: null };
const run = () => RUNS[state.run];
const other = () => (TWO ? RUNS[1 - state.run] : null);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function element(make, name, attributes, children) {
  const made = make(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  for (const child of [children].flat(Infinity)) if (child !== null && child !== undefined && child !== "") made.append(child);
  return made;
}
const h = (name, attributes, ...children) => element((n) => document.createElement(n), name, attributes, children);
const s = (name, attributes, ...children) => element((n) => document.createElementNS(SVG, n), name, attributes, children);
const fill = (where, ...children) => { byId(where).replaceChildren(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== "")); };

const known = (x) => x !== null && x !== undefined;
const dB = (x) => (known(x) ? `${x.toFixed(1)} dB` : "–");
const signed = (x, digits = 1) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(digits)}`;
const share = (x) => (!known(x) ? "–" : x >= 0.0995 ? `${(100 * x).toFixed(0)} %` : x >= 0.00095 ? `${(100 * x).toFixed(1)} %` : x > 0 ? "< 0.1 %" : "0 %");
const bytes = (x) => (x >= 1e8 ? `${(x / 1e6).toFixed(0)} MB` : x >= 1e5 ? `${(x / 1e6).toFixed(1)} MB` : `${(x / 1e3).toFixed(1)} kB`);
const time = (x) => (!known(x) ? "–" : x >= 1 ? `${x.toFixed(2)} s` : x >= 1e-3 ? `${(x * 1e3).toFixed(2)} ms` : `${(x * 1e6).toFixed(0)} µs`);
const count = (x) => (x >= 1e9 ? `${(x / 1e9).toFixed(1)} billion` : x >= 1e6 ? `${(x / 1e6).toFixed(1)} million` : x >= 1e4 ? `${(x / 1e3).toFixed(0)} thousand` : `${x}`);
const number = (x) => (x === 0 ? "0" : Math.abs(x) >= 1e4 || Math.abs(x) < 1e-3 ? x.toExponential(1) : `${+x.toPrecision(3)}`);
const plural = (n, one, many) => `${n} ${n === 1 ? one : many || `${one}s`}`;
const sum = (items) => items.reduce((a, b) => a + b, 0);
const short = (text, most) => (text.length <= most ? text : `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(text.length - Math.floor(most / 2))}`);

function download(name, type, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
const fileName = (what) => `${run().model.name.replace(/\.onnx$/, "")}_${run().target}_${what}`;

// A copy of a drawing that shows the same without this page: with the values of its colours, and their rules.
function downloadSvg(drawing, name) {
  const copy = drawing.cloneNode(true), box = drawing.getBoundingClientRect();
  const style = getComputedStyle(document.documentElement);
  const names = ["paper", "card", "ink", "quiet", "line", "accent", "float", "heat-0", "heat-1", "heat-2", "hot-ink", "alone", "together", "other", "bar", "cut", "shade"];
  copy.setAttribute("xmlns", SVG);
  copy.setAttribute("width", Math.round(box.width));
  copy.setAttribute("height", Math.round(box.height));
  copy.setAttribute("style", names.map((n) => `--${n}:${style.getPropertyValue(`--${n}`).trim()}`).join(";") + ";background:var(--card);font-family:sans-serif");
  download(`${fileName(name)}.svg`, "image/svg+xml", new XMLSerializer().serializeToString(copy));
}

function csvOf(rows) {
  const cell = (x) => (!known(x) ? "" : /[",\n]/.test(`${x}`) ? `"${`${x}`.replaceAll('"', '""')}"` : `${x}`);
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

// What is looked up often, once for each run.
for (const one of RUNS) {
  one.byName = new Map(one.layers.map((layer, place) => [layer.name, layer]));
  one.layers.forEach((layer, place) => { layer.place = place; });
  one.byNode = new Map();
  for (const layer of one.layers) if (layer.node >= 0 && !one.byNode.has(layer.node)) one.byNode.set(layer.node, layer);
  one.worst = one.layers.filter((l) => known(l.share)).sort((a, b) => b.share - a.share);
  one.order = one.layers.map((l) => l.node);
}
const clipped = (one, layer) => {
  const found = [...layer.reads, ...layer.makes].map((name) => one.tensors[name].saturated).filter(known);
  return found.length ? Math.max(...found) : null;
};

const tip = h("div", { class: "tip", hidden: true });
document.body.append(tip);
function showTip(event, lines) {
  tip.replaceChildren(...lines.map((line) => h("div", {}, line)));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 8))}px`;
}
const hideTip = () => { tip.hidden = true; };
