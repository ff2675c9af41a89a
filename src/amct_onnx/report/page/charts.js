// Drawings: the histogram of a tensor, the ranges of a weight, the errors along the network.

function histogram(name, one) {
  const W = 420, H = 150, left = 8, right = 8, top = 20, floor = H - 22;
  const first = Math.min(one.start, one.clip ? one.clip[0] : one.start), end = one.start + one.width * one.counts.length;
  const last = Math.max(end, one.clip ? one.clip[1] : end), span = last - first || 1;
  const x = (value) => left + ((value - first) / span) * (W - left - right);
  const most = Math.log1p(Math.max(...one.counts, 1));
  const y = (n) => floor - (Math.log1p(n) / most) * (floor - top);
  const bars = one.counts.map((n, i) => n ? s("rect", { x: x(one.start + i * one.width), y: y(n), width: Math.max(1, x(one.start + one.width) - x(one.start) - 0.5), height: floor - y(n), fill: "var(--bar)" }) : null);
  const said = one.clip ? `, grid from ${number(one.clip[0])} to ${number(one.clip[1])}, ${share(one.saturated)} beyond it` : "";
  const cuts = !one.clip ? [] : one.clip.map((value, side) => {
    const at = x(value);
    return [
      s("rect", { x: side ? at : left, y: top, width: Math.max(0, side ? W - right - at : at - left), height: floor - top, fill: "var(--shade)" }),
      s("line", { x1: at, x2: at, y1: top - 6, y2: floor, stroke: "var(--cut)", "stroke-width": 1.5 }),
      text(at, 11, number(value), side ? "end" : "start", "var(--cut)"),
    ];
  });
  const zero = first < 0 && last > 0 ? s("line", { x1: x(0), x2: x(0), y1: floor, y2: floor + 4, stroke: "var(--quiet)" }) : null;
  return s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Values of ${name}: from ${number(one.minimum)} to ${number(one.maximum)}${said}` },
    bars, cuts, s("line", { x1: left, x2: W - right, y1: floor, y2: floor, stroke: "var(--line)" }), zero,
    text(left, H - 6, number(first), "start"), zero && x(0) > 60 && x(0) < W - 60 ? text(x(0), H - 6, "0", "middle") : null, text(W - right, H - 6, number(last), "end"));
}

function text(x, y, words, anchor, colour, size) {
  return s("text", { x, y, "text-anchor": anchor || "start", fill: colour || "var(--quiet)", "font-size": size || 11 }, words);
}

function weightRanges(one) {
  const W = 420, H = 130, left = 48, right = 6, top = 8, floor = H - 20;
  const low = Math.min(...one.low, 0), high = Math.max(...one.high, 0), span = high - low || 1;
  const y = (value) => top + ((high - value) / span) * (floor - top), step = (W - left - right) / one.low.length;
  const bars = one.low.map((value, i) => s("rect", { x: left + i * step, y: y(one.high[i]), width: Math.max(0.8, step - (step > 3 ? 1 : 0)), height: Math.max(0.8, y(value) - y(one.high[i])), fill: "var(--bar)" }));
  return s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Ranges of ${one.channels} output channels of the weight, from ${number(low)} to ${number(high)}` },
    bars, s("line", { x1: left, x2: W - right, y1: y(0), y2: y(0), stroke: "var(--quiet)", "stroke-width": 0.7 }),
    text(left - 4, top + 9, number(high), "end"), text(left - 4, floor, number(low), "end"), text(left, H - 5, "channel 1"), text(W - right, H - 5, `${one.channels}`, "end"));
}

function alongChart(width) {
  const W = Math.max(320, width), H = 260, left = 44, right = 12, top = 26, floor = H - 34, one = run(), two = other();
  const lines = [["alone", "rounded alone", one, "alone", "var(--alone)", ""], ["together", "with all before it", one, "together", "var(--together)", ""]];
  if (two) lines.push(["other", `with all before it, run ${LETTER[1 - state.run]}`, two, "together", "var(--other)", "5 4"]);
  const values = lines.flatMap(([, , r, key]) => r.layers.map((l) => l[key]).filter(known));
  if (!values.length) return h("p", { class: "quiet" }, "The errors of layers were not measured.");
  const low = Math.floor(Math.min(...values, 20) / 10) * 10, high = Math.ceil(Math.min(60, Math.max(...values)) / 10) * 10;
  const x = (i, n) => left + ((i + 0.5) / Math.max(1, n)) * (W - left - right), y = (v) => top + ((high - Math.max(low, Math.min(high, v))) / (high - low || 1)) * (floor - top);
  const grid = [];
  for (let v = low; v <= high; v += 10) grid.push(s("line", { x1: left, x2: W - right, y1: y(v), y2: y(v), stroke: "var(--line)", "stroke-width": 0.7 }), text(left - 6, y(v) + 4, `${v}`, "end"));
  const paths = lines.map(([, , r, key, colour, dash]) => {
    let d = "", open = false;
    r.layers.forEach((l, i) => { if (!known(l[key])) { open = false; return; } d += `${open ? "L" : "M"}${x(i, r.layers.length).toFixed(1)} ${y(l[key]).toFixed(1)}`; open = true; });
    const dots = r.layers.length > 150 ? [] : r.layers.map((l, i) => known(l[key]) ? s("circle", { cx: x(i, r.layers.length), cy: y(l[key]), r: 2.2, fill: colour }) : null);
    if (key === "alone") return r.layers.map((l, i) => known(l[key]) ? s("circle", { cx: x(i, r.layers.length), cy: y(l[key]), r: r.layers.length > 300 ? 1.5 : 2.6, fill: colour }) : null);
    return [s("path", { d, fill: "none", stroke: colour, "stroke-width": 1.8, "stroke-dasharray": dash || null, "stroke-linejoin": "round" }), dots];
  });
  const n = one.layers.length, float = one.layers.map((l, i) => l.quantized ? null : s("rect", { x: x(i, n) - (W - left - right) / n / 2, y: floor + 3, width: Math.max(1, (W - left - right) / n), height: 5, fill: "var(--float)" }));
  let at = left;
  const names = lines.map(([, words, , key, colour, dash]) => { const g = s("g", {}, key === "alone" ? s("circle", { cx: at + 9, cy: 11, r: 3.4, fill: colour }) : s("line", { x1: at, x2: at + 18, y1: 11, y2: 11, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash || null }), text(at + 23, 15, words, "start", "var(--ink)", 12)); at += 44 + words.length * 6.4; return g; });
  const cursor = s("line", { y1: top, y2: floor, stroke: "var(--ink)", "stroke-width": 0.8, visibility: "hidden" });
  const drawing = s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Signal over noise of each layer alone and with all layers in front of it, in the order of the network" },
    grid, float, paths, names, cursor, text(left, H - 8, "first layer"), text(W - right, H - 8, "last layer", "end"),
    one.layers.some((l) => !l.quantized) ? text((left + W) / 2, H - 8, "violet: stayed in float", "middle", "var(--float)") : null);
  const nearest = (event) => {
    const box = drawing.getBoundingClientRect(), place = ((event.clientX - box.left) * W / box.width - left) / (W - left - right);
    return Math.max(0, Math.min(n - 1, Math.floor(place * n)));
  };
  drawing.addEventListener("pointermove", (event) => {
    const i = nearest(event), l = one.layers[i];
    cursor.setAttribute("x1", x(i, n)); cursor.setAttribute("x2", x(i, n)); cursor.setAttribute("visibility", "visible");
    showTip(event, [`${l.name} (${l.op_type})`, `alone: ${dB(l.alone)}`, `with all before it: ${dB(l.together)}`]);
  });
  drawing.addEventListener("pointerleave", () => { hideTip(); cursor.setAttribute("visibility", "hidden"); });
  drawing.addEventListener("click", (event) => openLayer(one.layers[nearest(event)].name));
  return drawing;
}
