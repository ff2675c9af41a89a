// The panel of one layer: what was decided for it, what it costs, what its tensors held.
function openLayer(name) {
  const one = run(), layer = one.byName.get(name), node = layer ? layer.node : one.nodes.findIndex((n) => n.name === name);
  state.chosen = name;
  const panel = byId("panel"), at = layer ? layer.place : -1, step = (by) => openLayer(one.layers[(at + by + one.layers.length) % one.layers.length].name);
  const head = h("div", { class: "head" }, h("h2", {}, name),
    h("div", { class: "tools" }, at >= 0 ? [h("button", { type: "button", "aria-label": "The layer before", onclick: () => step(-1) }, "←"), h("button", { type: "button", "aria-label": "The next layer", onclick: () => step(1) }, "→")] : null,
      h("button", { type: "button", id: "panel-close", "aria-label": "Close", onclick: closeLayer }, "×")));
  panel.replaceChildren(head, ...(layer ? layerParts(one, layer) : [h("p", {}, `${node >= 0 ? one.nodes[node].op_type : "A node"}: no layer that is quantized by itself. It moves or joins what its neighbours make.`)]));
  panel.hidden = false;
  panel.scrollTop = 0;
  panel.focus({ preventScroll: true });
  if (node >= 0) { if (openTo(node)) drawMap(); else markChosen(); keepInView(name); }
  for (const row of document.querySelectorAll("tr[data-layer]")) row.classList.toggle("chosen", row.dataset.layer === name);
}
// The box of the open layer is not left behind the panel, or outside of the frame.
function keepInView(name) {
  const found = [...mapState.scene.querySelectorAll(".box")].find((b) => b.dataset.name === name), panel = byId("panel").getBoundingClientRect(), frame = byId("map").getBoundingClientRect();
  if (!found) return;
  const box = found.getBoundingClientRect(), right = innerWidth > 700 ? Math.min(frame.right, panel.left) : frame.right;
  const dx = box.right > right - 10 ? right - 30 - box.right : box.left < frame.left ? frame.left + 30 - box.left : 0;
  const dy = box.bottom > frame.bottom ? frame.bottom - 30 - box.bottom : box.top < frame.top ? frame.top + 30 - box.top : 0;
  if (dx || dy) { mapState.view = { ...mapState.view, x: mapState.view.x + dx, y: mapState.view.y + dy }; applyView(); }
}
function markChosen() {
  for (const found of mapState.scene.querySelectorAll(".box[data-name]")) {
    const rect = found.querySelector("rect:last-of-type"), is = found.dataset.name === state.chosen;
    if (is) { rect.dataset.was ??= `${rect.getAttribute("stroke")}|${rect.getAttribute("stroke-width")}`; rect.setAttribute("stroke", "var(--accent)"); rect.setAttribute("stroke-width", 3); }
    else if (rect.dataset.was) { const [stroke, width] = rect.dataset.was.split("|"); rect.setAttribute("stroke", stroke); rect.setAttribute("stroke-width", width); }
  }
}
function closeLayer() {
  byId("panel").hidden = true;
  const name = state.chosen;
  state.chosen = "";
  markChosen();
  for (const row of document.querySelectorAll("tr.chosen")) { row.classList.remove("chosen"); row.querySelector("button")?.focus({ preventScroll: true }); }
  return name;
}

function layerParts(one, layer) {
  const facts = [], fact = (title, ...what) => { if (what.some((w) => known(w) && w !== "")) facts.push(h("dt", {}, title), h("dd", {}, what)); };
  const two = other() && other().byName.get(layer.name), beside = (value) => (two ? ` (run ${LETTER[1 - state.run]}: ${value(two)})` : "");
  const place = one.worst.indexOf(layer);
  if (known(layer.share)) fact("Error contributed", `${share(layer.share)}, number ${place + 1} of ${one.worst.length}`, beside((l) => share(l.share)));
  else if (layer.quantized && known(one.accuracy.sqnr)) fact("Error contributed", "not measured: its own error is among the smaller ones");
  if (known(layer.effect) && layer.effect > 0) fact("Outputs if only it is rounded", dB(-10 * Math.log10(layer.effect)));
  if (known(layer.alone)) fact("Rounded alone", `${dB(layer.alone)}, cosine ${layer.alone_cosine.toFixed(5)}`, beside((l) => dB(l.alone)));
  if (known(layer.together)) fact("With all before it", `${dB(layer.together)}, cosine ${layer.together_cosine.toFixed(5)}`, beside((l) => dB(l.together)));
  if (known(layer.from_weight) && known(layer.alone) && layer.weight) fact("Its error comes from", layer.from_weight > 0.5 ? `its weight, ${share(layer.from_weight)}` : `its activation, ${share(1 - layer.from_weight)}`);
  const cut = clipped(one, layer);
  if (known(cut)) fact("Beyond the grid", `${share(cut)} of the values`);
  if (layer.kernels.length) fact("Kernel", layer.kernels.join(", "));
  if (known(layer.seconds_after) || known(layer.seconds_before)) fact("Time", `${time(layer.seconds_before)} in float, ${time(layer.seconds_after)} now`);
  if (layer.shape.length) fact("Makes", layer.shape.join(" × "));
  if (layer.multiplications) fact("Work", `${count(layer.multiplications)} multiplications`);
  fact("In the source model", layer.source.join(", "));
  const brings = one.advice.filter((a) => a.kind === "float" && a.layers.length < 3 && a.layers[0] === layer.name);
  const tensors = (title, names) => names.map((name) => {
    const tensor = one.tensors[name];
    return [h("h3", {}, `${title}: ${name}`), histogram(name, tensor),
      h("p", { class: "quiet" }, `From ${number(tensor.minimum)} to ${number(tensor.maximum)}, logarithmic counts. `, tensor.clip ? `The ${tensor.bits}-bit grid reaches from ${number(tensor.clip[0])} to ${number(tensor.clip[1])}; ${share(tensor.saturated)} of the values lie beyond it.` : "It is not quantized here.")];
  });
  const w = layer.weight;
  return [
    h("p", { class: "chips" }, h("span", { class: `chip ${layer.quantized ? "int" : "float"}` }, layer.quantized ? "in integers" : "in float"), h("span", { class: "chip" }, layer.op_type)),
    layer.reason ? h("p", {}, `Why: ${layer.reason}.`) : null, h("dl", {}, facts),
    brings.map((a) => h("div", { class: "card" }, h("h3", {}, `In float ${a.layers.length > 1 ? `together with ${a.layers.slice(1).join(", ")} ` : ""}it would bring`), h("p", {}, gainText(a), " ", a.why), copyable(a))),
    tensors("It reads", layer.reads), tensors("It makes", layer.makes.filter((name) => !layer.reads.includes(name))),
    w ? [h("h3", {}, "Weight by output channel"), weightRanges(w), h("p", { class: "quiet" }, `${w.shape.join(" × ")}`, w.bits ? `, ${w.bits} bits, ${plural(w.scales, "scale")}` : ", in float", known(w.sqnr) ? `; rounded it is ${dB(w.sqnr)} above its noise` : "", w.low.length < w.channels ? `. Each bar is ${Math.ceil(w.channels / w.low.length)} channels.` : ".")] : null,
  ].flat(4).filter(Boolean);
}
const gainText = (a) => (known(a.gain) ? `${signed(a.gain)} dB${known(a.cost) ? `, about ${(100 * a.cost).toFixed(1)} % more time` : ""}.` : "");

function copyable(advice) {
  return [advice.option, advice.argument].filter(Boolean).map((words) => h("div", { class: "copy" }, h("code", {}, words),
    h("button", { type: "button", "aria-label": `Copy ${words}`, onclick: (event) => { navigator.clipboard?.writeText(words).then(() => { event.target.textContent = "Copied"; }, () => {}); } }, "Copy")));
}
