// The rest of the page: summary, advice, recipe, details, and two runs side by side.
const level = (x, top) => {
  if (x >= 20 && known(top) && top < 0.9) return ["fair", "some answers change: check your task"];
  return x >= 30 ? ["good", "very close to float"] : x >= 20 ? ["good", "close to float"] : x >= 12 ? ["fair", "noisy: check your task"] : ["bad", "far from float: most tasks suffer"];
};

function drawSummary() {
  const one = run(), accuracy = one.accuracy, runtime = one.runtime, worst = one.worst[0], quantized = one.layers.filter((l) => l.quantized).length;
  fill("subtitle", [`${one.model.name} for ${one.target}`, one.data && `calibrated with ${one.data}`, plural(one.model.nodes, "node"), `${count(one.model.weights)} weights`, `opset ${one.model.opset}`].filter(Boolean).join(" · "));
  const words = [];
  if (known(reached(one))) { const [kind, said] = level(reached(one), accuracy.same_top1); words.push(h("b", { class: kind }, `${dB(reached(one))}: ${said}. `)); }
  else words.push(h("b", { class: "fair" }, "The error was not measured"), accuracy.problem ? `: ${accuracy.problem} ` : ". ");
  if (worst) words.push(h("b", {}, worst.name), ` (${worst.op_type}) hurts most, with ${share(worst.share)} of the error. `);
  const float = one.advice.find((a) => a.kind === "float"), next = one.advice.find((a) => a.kind !== "done" && a.kind !== "float" && a.option);
  if (float && float.gain >= 0.5) words.push("In float, ", float.layers.length === 1 && worst && float.layers[0] === worst.name ? "it" : h("b", {}, float.layers.join(" and ")), ` would bring ${signed(float.gain)} dB${known(float.cost) ? ` for ${(100 * float.cost).toFixed(0)} % more time` : ""}. `);
  else if (float) words.push("No single layer stands out. ");
  if (next) words.push(`Try ${next.option}.`);
  fill("verdict", words);
  const where = known(accuracy.decibels) ? `${plural(accuracy.judged, "sample")} ${accuracy.held_out ? "held out" : "of the calibration"}` : plural(accuracy.samples, "sample");
  const top = known(accuracy.same_top1) ? `, same top-1 for ${share(accuracy.same_top1)}` : "";
  const tiles = [tile("Outputs", dB(reached(one)), known(reached(one)) ? `signal over noise of int8${top}; ${where}` : "not measured", known(reached(one)) ? level(reached(one), accuracy.same_top1)[0] : "")];
  if (known(one.bytes_after)) {
    const smaller = one.bytes_before / Math.max(1, one.bytes_after);
    tiles.push(tile("Size", smaller >= 1 ? `${smaller.toFixed(1)} × smaller` : `${(1 / smaller).toFixed(1)} × larger`, `${bytes(one.bytes_before)} in float, ${bytes(one.bytes_after)} now`));
  }
  if (runtime) {
    const spread = known(runtime.low) ? `${runtime.low.toFixed(2)} to ${runtime.high.toFixed(2)} × as fast` : "";
    if (runtime.too_busy) tiles.push(tile("Latency", "not measured", `the machine is too busy: ${spread}`));
    else if (known(runtime.seconds_after)) {
      const faster = runtime.speedup;
      tiles.push(tile("Latency", faster >= 1 ? `${faster.toFixed(2)} × as fast` : `${(1 / faster).toFixed(2)} × slower`, `${time(runtime.seconds_before)} in float, ${time(runtime.seconds_after)} now; medians of ${runtime.runs} runs here${spread ? `, mostly ${spread}` : ""}`, faster < 0.98 ? "bad" : ""));
    }
  }
  const kernels = runtime ? `; ${plural(sum(Object.values(runtime.integer)), "integer kernel")}, ${sum(Object.values(runtime.floating))} in float` : "";
  tiles.push(tile("In integers", `${quantized} of ${one.layers.length}`, `layers that ${one.target} could quantize${kernels}`));
  fill("tiles", tiles);
  const warnings = [...one.notes];
  if (runtime && runtime.slow_because.length) warnings.push(`Slower than the float model here: ${runtime.slow_because.join("; ")}.`);
  if (runtime && runtime.saturates) warnings.push("This CPU adds pairs of products in 16 bits (no VNNI), and they may overflow.");
  if (accuracy.problem && known(reached(one))) warnings.push(`The errors of layers were not measured: ${accuracy.problem}`);
  fill("warnings", warnings.map((w) => h("p", { class: "note" }, w)));
}
const reached = (one) => (known(one.accuracy.decibels) ? one.accuracy.decibels : one.accuracy.sqnr);
const tile = (title, big, small, kind) => h("div", { class: "tile" }, h("h3", {}, title), h("span", { class: `big ${kind || ""}` }, big), h("p", { class: "quiet" }, small));

function drawNext() {
  const one = run(), shown = one.worst.slice(0, 10), most = shown.length ? shown[0].share : 1, accuracy = one.accuracy;
  fill("worst", shown.map((l) => h("li", {}, h("button", { type: "button", "data-layer": l.name, onclick: () => openLayer(l.name) },
    h("span", { class: "what" }, h("b", {}, l.name), h("span", { class: "quiet" }, `${l.op_type}${l.weight && known(l.from_weight) ? `, by its ${l.from_weight > 0.5 ? "weight" : "activation"}` : ""}`)),
    h("span", { class: "track" }, h("span", { class: "fill", style: `width:${(100 * l.share / most).toFixed(1)}%` })), h("span", { class: "value" }, share(l.share))))));
  const part = one.layers.some((l) => known(l.alone) && !known(l.effect)) ? `, for the ${one.worst.length} whose own error is largest` : "";
  fill("worst-note", shown.length ? `What the outputs lose if only this layer is rounded, as a share of the sum${part}; measured on ${plural(accuracy.effect_samples, "sample")}. A click shows the layer.` : `Not measured${accuracy.problem ? `: ${accuracy.problem}` : ""}.`);
  const float = one.advice.filter((a) => a.kind === "float"), rest = one.advice.filter((a) => a.kind !== "float");
  const cards = rest.map((a) => h("div", { class: "card", "data-kind": a.kind }, h("h3", {}, a.title), h("p", {}, a.why), copyable(a)));
  if (float.length) cards.splice(rest.length && rest[0].kind === "done" ? 1 : 0, 0, floatCard(one, float));
  fill("advice", cards.length ? cards : h("p", {}, "Nothing was found that would help: no single layer stands out, and effort and data are spent."));
}
function floatCard(one, float) {
  const best = float.reduce((a, b) => (b.gain > a.gain ? b : a)), small = Math.max(...float.map((a) => a.gain)) < 0.5;
  return h("div", { class: "card", "data-kind": "float" }, h("h3", {}, small ? "Layers in float: little to gain" : "Leave layers in float"),
    h("p", {}, `What the outputs gain if these stay in float, measured on ${plural(one.accuracy.float_samples, "sample")}, and what that costs by a table of prices:`),
    h("table", { class: "plain" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "In float"), h("th", { scope: "col", class: "n" }, "Brings"), h("th", { scope: "col", class: "n" }, "Costs"))),
      h("tbody", {}, float.map((a) => h("tr", {}, h("td", { class: "name" }, a.layers.length > 3 || (a === float.at(-1) && a.layers.length > 2) ? `All ${a.layers.length} together` : a.layers.length > 1 ? a.layers.map((name, i) => [i ? " and " : "", h("button", { type: "button", onclick: () => openLayer(name) }, name)]) : h("button", { type: "button", onclick: () => openLayer(a.layers[0]) }, a.layers[0]), a.why ? h("div", { class: "quiet" }, a.why) : null),
        h("td", { class: "n" }, h("b", { class: "good" }, `${signed(a.gain)} dB`)), h("td", { class: "n" }, known(a.cost) ? `${(100 * a.cost).toFixed(1)} % time` : "–"))))),
    copyable(best));
}

function drawSteps() {
  const one = run();
  if (!one.steps.length) { fill("steps", h("p", { class: "quiet", style: "padding:.3rem .8rem;margin:.4rem 0" }, "Nothing: effort fast, settings of the user, or too few samples to judge with.")); return; }
  const gains = one.steps.map((t) => (known(t.after) && known(t.before) ? t.after - t.before : null)), most = Math.max(0.5, ...gains.filter(known).map(Math.abs));
  fill("steps", h("table", {}, h("thead", {}, h("tr", {}, ["Step", "Verdict", "Before", "After", "Gain", ""].map((t, i) => h("th", { scope: "col", class: i > 1 && i < 5 ? "n" : null }, t)))),
    h("tbody", {}, one.steps.map((t, i) => h("tr", {}, h("td", { class: "text" }, t.name, t.reason ? h("div", { class: "quiet" }, t.reason) : null),
      h("td", {}, known(t.after) ? h("span", { class: t.kept ? "good" : "bad" }, t.kept ? "✓ kept" : "✗ rejected") : h("span", { class: "quiet" }, "not tried")),
      h("td", { class: "n" }, dB(t.before)), h("td", { class: "n" }, dB(t.after)), h("td", { class: "n" }, known(gains[i]) ? `${signed(gains[i])}${t.error ? ` ± ${t.error.toFixed(1)}` : ""}` : "–"), h("td", {}, known(gains[i]) ? gainBar(gains[i], most, t.kept) : ""))))));
}
function gainBar(gain, most, kept) {
  const W = 120, middle = W / 2, wide = (Math.abs(gain) / most) * (middle - 2);
  return s("svg", { viewBox: `0 0 ${W} 14`, width: W, height: 14, "aria-hidden": "true" }, s("line", { x1: middle, x2: middle, y1: 0, y2: 14, stroke: "var(--line)" }),
    s("rect", { x: gain < 0 ? middle - wide : middle, y: 2, width: Math.max(1, wide), height: 10, rx: 2, fill: kept ? "var(--good)" : "var(--quiet)" }));
}

function drawDetails() {
  const one = run(), r = one.runtime, list = (items) => h("ul", {}, items.map((i) => h("li", {}, i))), kinds = (counts) => Object.entries(counts).map(([k, n]) => `${n} ${k}`).join(", ") || "none";
  const reasons = new Map();
  for (const l of one.layers) if (!l.quantized) reasons.set(l.reason, [...(reasons.get(l.reason) || []), l.name]);
  fill("facts",
    h("div", {}, h("h3", {}, "Model and data"), h("dl", {}, [["Inputs", one.model.inputs.join("; ")], ["Outputs", one.model.outputs.join("; ")], ["Data", one.data || "none"], ["Assumed", one.assumptions.join("; ") || "nothing"], ["Looked at", known(one.accuracy.sqnr) ? `${plural(one.accuracy.samples, "sample")}: ${dB(one.accuracy.sqnr)} together, ${dB(Math.min(...one.accuracy.by_sample.filter(known)))} the worst` : "no samples"]].map(([t, d]) => [h("dt", {}, t), h("dd", {}, d)])),
      one.accuracy.search ? [h("h3", {}, "Search for mixed precision"), one.accuracy.search.split("\n").map((t) => h("p", {}, t))] : null,
      reasons.size ? [h("h3", {}, "Layers that stayed in float"), list([...reasons].map(([why, names]) => `${names.length}: ${why || "no reason given"} (${names.slice(0, 4).join(", ")}${names.length > 4 ? ` and ${names.length - 4} more` : ""})`))] : null),
    h("div", {}, r ? [h("h3", {}, `ONNX Runtime ${r.version} on this machine`), h("dl", {}, [["Integer kernels", kinds(r.integer)], ["Float kernels", kinds(r.floating)], ["Conversions", `${r.conversions}, ${r.inner_conversions} of them inside the model`]].map(([t, d]) => [h("dt", {}, t), h("dd", {}, d)])),
      r.stayed_float.length ? [h("h3", {}, "Nodes that run in float, and why"), list(r.stayed_float)] : null] : h("p", { class: "quiet" }, "The kernels were not looked at: this target's files do not run here as they do there, or nobody asked."),
      h("h3", {}, "How to read it"), h("p", { class: "quiet" }, "dB is signal over noise: 10 dB less is ten times the noise power; 20 dB is one per cent of noise. Alone: only this layer is rounded, and its own result is compared. Accumulated: all layers are. Error share: what the outputs lose by this layer alone, of the sum over layers. ", `amct_onnx ${one.version}.`)));
}

function drawVersus() {
  if (!TWO) return;
  const [a, b] = RUNS, pick = [
    ["Target", (r) => r.target], ["Outputs", (r) => dB(reached(r)), reached, " dB"], ["Layers in integers", (r) => `${r.layers.filter((l) => l.quantized).length} of ${r.layers.length}`, (r) => r.layers.filter((l) => l.quantized).length, ""],
    ["Size", (r) => (known(r.bytes_after) ? bytes(r.bytes_after) : "–"), (r) => (known(r.bytes_after) ? r.bytes_after / 1e6 : null), " MB"], ["Latency", (r) => (r.runtime ? time(r.runtime.seconds_after) : "–"), (r) => (r.runtime && known(r.runtime.seconds_after) ? r.runtime.seconds_after * 1e3 : null), " ms"], ["Hurts most", (r) => (r.worst[0] ? `${r.worst[0].name}, ${share(r.worst[0].share)}` : "–")], ["Data", (r) => r.data || "none"],
  ];
  const changed = a.layers.filter((l) => b.byName.has(l.name) && b.byName.get(l.name).quantized !== l.quantized);
  const nearer = a.layers.filter((l) => b.byName.has(l.name)).map((l) => [l, b.byName.get(l.name)]).filter(([x, y]) => known(x.together) && known(y.together)).sort(([x, y], [p, q]) => Math.abs(q.together - p.together) - Math.abs(y.together - x.together)).slice(0, 5);
  fill("versus", h("h3", {}, "Two runs side by side"), h("div", { class: "wide" }, h("table", { id: "versus-table" }, h("thead", {}, h("tr", {}, ["", `A: ${a.title}`, `B: ${b.title}`, "B − A"].map((t) => h("th", { scope: "col" }, t)))),
    h("tbody", {}, pick.map(([t, show, value, unit]) => h("tr", {}, h("th", { scope: "row" }, t), h("td", {}, show(a)), h("td", {}, show(b)), h("td", {}, value && known(value(a)) && known(value(b)) ? `${signed(value(b) - value(a), unit ? 1 : 0)}${unit}` : "")))))),
    h("p", { class: "quiet" }, changed.length ? `In integers in one run only: ${changed.slice(0, 6).map((l) => l.name).join(", ")}${changed.length > 6 ? ` and ${changed.length - 6} more` : ""}. ` : "Both have the same layers in integers. ",
      nearer.length ? `They differ most at ${nearer.map(([x, y]) => `${x.name} (${signed(y.together - x.together)} dB)`).join(", ")}.` : ""));
  const choose = (i) => { state.run = i; closePanel(); drawAll(); };
  byId("run-switch").hidden = false;
  fill("run-switch", RUNS.map((r, i) => h("button", { type: "button", "aria-pressed": i === state.run ? "true" : "false", onclick: () => choose(i) }, `${LETTER[i]}: ${short(r.title, 24)}`)));
}
const closePanel = () => { if (!byId("panel").hidden) closeLayer(); };

function drawAlong() { fill("along-chart", alongChart(byId("along-chart").clientWidth - 16)); }
function drawAll() {
  drawSummary(); drawVersus(); drawNext(); drawSteps(); drawDetails(); setUpTable(); drawAlong(); setUpMap();
}
byId("save-csv").onclick = saveCsv;
byId("save-json").onclick = () => download(`${fileName("run")}.json`, "application/json", byId("data").textContent);
byId("print").onclick = () => print();
byId("along-svg").onclick = () => { const drawing = byId("along-chart").querySelector("svg"); if (drawing) downloadSvg(drawing, "along"); };
addEventListener("keydown", (event) => { if (event.key === "Escape") closePanel(); });
addEventListener("beforeprint", () => { tableState.all = true; drawTable(); });
let resized = 0, wideBefore = innerWidth;
addEventListener("resize", () => { if (innerWidth === wideBefore) return; wideBefore = innerWidth; clearTimeout(resized); resized = setTimeout(() => { drawAlong(); mapState.view = null; drawMap(); }, 120); });
drawAll();
document.documentElement.dataset.ready = "true";
