// The map: nodes and folded blocks as boxes, coloured by what they contribute to the error.
const COLOURS = {
  share: { title: "error contributed", of: (l) => l.share, join: sum, text: share, low: "none", high: "most" },
  alone: { title: "error when rounded alone", of: (l) => (known(l.alone) ? 10 ** (-l.alone / 20) : null), join: (v) => Math.max(...v), text: (v) => dB(-20 * Math.log10(v)), low: "small", high: "large" },
  together: { title: "error with all before it", of: (l) => (known(l.together) ? 10 ** (-l.together / 20) : null), join: (v) => Math.max(...v), text: (v) => dB(-20 * Math.log10(v)), low: "small", high: "large" },
  seconds: { title: "time in the runtime", of: (l) => l.seconds_after, join: sum, text: time, low: "short", high: "long" },
};
const mapState = { colour: "share", view: null, open: null, full: null };

function blockTree(one) {
  if (one.tree) return one.tree;
  const blocks = one.blocks.map((b, i) => ({ id: i, name: b.name, parent: b.parent, children: [], nodes: [], depth: b.parent < 0 ? 0 : -1 }));
  const root = { id: -1, name: "", parent: -1, children: [], nodes: [] };
  const at = (i) => (i < 0 ? root : blocks[i]);
  blocks.forEach((b) => at(b.parent).children.push({ block: b.id }));
  one.nodes.forEach((node, i) => {
    at(node.block).children.push({ node: i });
    for (let b = node.block; b >= 0; b = blocks[b].parent) blocks[b].nodes.push(i);
  });
  one.tree = { root, blocks };
  return one.tree;
}
const valueOfNodes = (one, nodes) => {
  const how = COLOURS[mapState.colour], found = nodes.map((i) => one.byNode.get(i)).filter(Boolean).map(how.of).filter(known);
  return found.length ? how.join(found) : null;
};

// Blocks are opened while all that is seen stays readable, those with the largest error first.
function startOpen(one, most) {
  const { root, blocks } = blockTree(one), open = new Set();
  let visible = root.children.length;
  const worth = (b) => valueOfNodes(one, blocks[b].nodes) ?? 0, waiting = root.children.filter((c) => "block" in c).map((c) => c.block);
  waiting.sort((a, b) => worth(b) - worth(a));
  while (waiting.length) {
    const next = waiting.shift(), more = blocks[next].children.length - 1;
    if (visible + more > most) continue;
    visible += more;
    open.add(next);
    waiting.push(...blocks[next].children.filter((c) => "block" in c).map((c) => c.block));
    waiting.sort((a, b) => worth(b) - worth(a));
  }
  return open;
}

function visibleItems(one, open) {
  const { root, blocks } = blockTree(one), items = [], of = new Array(one.nodes.length).fill(-1);
  const walk = (children) => children.forEach((child) => {
    if ("node" in child) { of[child.node] = items.length; items.push({ node: child.node, nodes: [child.node] }); }
    else if (open.has(child.block)) walk(blocks[child.block].children);
    else { blocks[child.block].nodes.forEach((i) => { of[i] = items.length; }); items.push({ block: child.block, nodes: blocks[child.block].nodes }); }
  });
  walk(root.children);
  items.forEach((item, i) => { item.first = Math.min(...item.nodes); });
  const order = items.map((_, i) => i).sort((a, b) => items[a].first - items[b].first), place = [];
  order.forEach((old, now) => { place[old] = now; });
  const seen = new Set(), edges = [];
  for (const [a, b] of one.edges) {
    const x = place[of[a]], y = place[of[b]], key = x * 1e6 + y;
    if (x !== y && !seen.has(key)) { seen.add(key); edges.push([x, y]); }
  }
  return { items: order.map((i) => items[i]), edges };
}

function heat(value, most) {
  if (!known(value) || !(most > 0)) return { fill: "var(--card)", ink: "var(--ink)" };
  const x = (Math.max(0, value) / most) ** 0.65;
  const mix = x < 0.5 ? `color-mix(in srgb, var(--heat-0), var(--heat-1) ${(200 * x).toFixed(0)}%)` : `color-mix(in srgb, var(--heat-1), var(--heat-2) ${(200 * x - 100).toFixed(0)}%)`;
  return { fill: mix, ink: x > 0.72 ? "var(--hot-ink)" : "var(--ink)" };
}

function drawMap() {
  const one = run(), frame = byId("map"), { blocks } = blockTree(one);
  const wide = frame.clientWidth || 900, tall = frame.clientHeight || 600;
  if (!mapState.open || mapState.full !== one) { mapState.open = startOpen(one, wide < 600 ? 26 : 44); mapState.full = one; mapState.view = null; }
  const { items, edges } = visibleItems(one, mapState.open), how = COLOURS[mapState.colour];
  const values = items.map((item) => valueOfNodes(one, item.nodes)), most = Math.max(0, ...values.filter(known));
  items.forEach((item) => {
    const layer = "node" in item ? one.byNode.get(item.node) : null;
    item.layer = layer;
    item.w = "block" in item ? 158 : layer ? 138 : 96;
    item.h = "block" in item ? 46 : layer ? 40 : 22;
  });
  const laid = wide < 600 ? layOut(items, edges, 0.42, 2) : layOut(items, edges, wide / tall, 24); // a phone scrolls down
  const lines = s("g", { fill: "none", stroke: "var(--quiet)", "stroke-width": 1.1, "stroke-opacity": 0.65 }, laid.paths.map((d) => s("path", { d, "marker-end": "url(#arrow)" })));
  const boxes = items.map((item, i) => box(one, item, values[i], most, laid.places[i], how));
  const scene = s("g", {}, lines, boxes);
  const drawing = s("svg", { tabindex: 0, role: "group", "aria-label": `Map of ${one.model.name}: ${plural(items.length, "box", "boxes")}. Plus and minus zoom, arrows move, 0 shows all, Enter opens.` },
    s("defs", {}, s("marker", { id: "arrow", viewBox: "0 0 6 6", refX: 5.4, refY: 3, markerWidth: 6, markerHeight: 6, orient: "auto" }, s("path", { d: "M0 0L6 3L0 6z", fill: "var(--quiet)" }))), scene);
  frame.replaceChildren(drawing);
  mapState.scene = scene;
  mapState.drawing = drawing;
  mapState.box = { wide: laid.wide, tall: laid.tall };
  if (!mapState.view) fitMap();
  else applyView();
  watchMap(drawing);
  const folded = items.filter((item) => "block" in item).length;
  fill("map-note", `${plural(one.nodes.length, "node")} in ${plural(items.length, "box", "boxes")}, from top to bottom and column by column`, folded ? `; a box with a + is a block of several: click to open it` : "", ". Wheel or + and − zoom, drag or arrows move, a click shows the layer.");
  fill("legend", h("span", {}, `${how.title}: ${how.low}`, h("span", { class: "ramp" }), how.high, most > 0 ? ` (${how.text(most)})` : ""),
    h("span", {}, h("i", { style: "border-style:dashed;border-color:var(--float)" }), "stayed in float"), h("span", {}, h("i", { style: "background:var(--card)" }), "no layer of its own, or not measured"));
}

// Of a name of many parts the last ones tell nodes apart; of a block the one around it as well.
const tail = (name) => (name.includes("/") ? name.split("/").filter(Boolean).slice(-2).join("/") : name);
const blockLabel = (blocks, id) => {
  const { name, parent } = blocks[id], around = parent >= 0 ? blocks[parent].name : "";
  return name.includes(" ") || !around || around.includes(" ") ? tail(name) : `${around}/${name}`;
};

function box(one, item, value, most, at, how) {
  const folded = "block" in item, { blocks } = blockTree(one), layer = item.layer, colour = heat(value, most);
  const node = folded ? null : one.nodes[item.node], name = folded ? blocks[item.block].name : node.name;
  const label = folded ? blockLabel(blocks, item.block) : tail(name);
  const layers = folded ? item.nodes.filter((i) => one.byNode.has(i)).length : 0;
  const floats = folded ? item.nodes.filter((i) => one.byNode.has(i) && !one.byNode.get(i).quantized).length : layer && !layer.quantized ? 1 : 0;
  const second = folded ? `${plural(item.nodes.length, "node")}${known(value) ? `, ${how.text(value)}` : ""}` : layer ? `${node.op_type}${known(value) ? `, ${how.text(value)}` : layer.quantized ? "" : ", float"}` : "";
  const said = folded ? `Block ${name}, ${plural(item.nodes.length, "node")}, ${plural(layers, "layer")}` : `${name}, ${node.op_type}${layer ? (layer.quantized ? ", in int8" : ", in float") : ""}`;
  const letters = Math.floor((item.w - (folded ? 36 : 12)) / 7.1), dashed = floats > 0 && floats === (folded ? layers : 1);
  const act = () => (folded ? toggleBlock(item.block) : openLayer(name));
  return s("g", { class: "box", transform: `translate(${at.x.toFixed(1)} ${at.y.toFixed(1)})`, tabindex: 0, role: "button", "data-name": name, "data-block": folded ? item.block : null,
      "aria-label": `${said}${known(value) ? `, ${how.title} ${how.text(value)}` : ""}`, style: "cursor:pointer", onclick: () => { if (!mapState.dragged) act(); },
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); act(); } } },
    s("title", {}, `${said}${known(value) ? `\n${how.title}: ${how.text(value)}` : ""}${layer && layer.reason ? `\n${layer.reason}` : ""}`),
    folded ? s("rect", { x: -item.w / 2 + 4, y: -item.h / 2 + 4, width: item.w, height: item.h, rx: 8, fill: "var(--heat-0)", stroke: "var(--line)" }) : null,
    s("rect", { x: -item.w / 2, y: -item.h / 2, width: item.w, height: item.h, rx: layer || folded ? 8 : 11, fill: colour.fill, stroke: name === state.chosen ? "var(--accent)" : dashed ? "var(--float)" : "var(--quiet)", "stroke-width": name === state.chosen ? 3 : dashed ? 1.8 : 0.8, "stroke-dasharray": dashed ? "5 3" : null }),
    layer || folded ? [line(0, -3, short(label, letters), colour.ink, 12, 600, folded ? -8 : 0), line(0, 12, second, colour.ink, 11.5, 400, folded ? -8 : 0)] : line(0, 4, node.op_type, "var(--quiet)", 11, 400, 0),
    folded ? s("text", { x: item.w / 2 - 15, y: 6, "text-anchor": "middle", "font-size": 18, fill: colour.ink }, "+") : null);
}
const line = (x, y, words, ink, size, weight, shift) => s("text", { x: x + shift, y, "text-anchor": "middle", "font-size": size, "font-weight": weight, fill: ink }, words);

function toggleBlock(id) {
  mapState.open.add(id);
  const before = mapState.view;
  mapState.view = null;
  drawMap();
  const { blocks } = blockTree(run());
  if (before && before.k > mapState.view.k * 1.2) { mapState.view.k = before.k; showNode(blocks[id].nodes[0]); }
}

function openTo(node) {
  const { blocks } = blockTree(run());
  let changed = false;
  for (let b = run().nodes[node].block; b >= 0; b = blocks[b].parent) if (!mapState.open.has(b)) { mapState.open.add(b); changed = true; }
  return changed;
}

function fitMap() {
  const wide = mapState.drawing.clientWidth || 900, tall = mapState.drawing.clientHeight || 600, { wide: w, tall: t } = mapState.box, room = 20;
  const least = Math.min((wide - 2 * room) / w, (tall - 2 * room) / t, 1.25), k = wide < 600 ? Math.max(least, Math.min((wide - 2 * room) / w, 1)) : least;
  mapState.view = { k, x: Math.max(room, (wide - w * k) / 2), y: t * k > tall ? room : (tall - t * k) / 2 };
  mapState.fitted = least;
  applyView();
}
function applyView() {
  const { x, y, k } = mapState.view;
  mapState.scene.setAttribute("transform", `translate(${x.toFixed(2)} ${y.toFixed(2)}) scale(${k.toFixed(4)})`);
}
function zoomMap(factor, x, y) {
  const view = mapState.view, k = Math.max(Math.min(mapState.fitted, 1) * 0.7, Math.min(4, view.k * factor));
  const cx = x ?? mapState.drawing.clientWidth / 2, cy = y ?? mapState.drawing.clientHeight / 2;
  mapState.view = { k, x: cx - ((cx - view.x) * k) / view.k, y: cy - ((cy - view.y) * k) / view.k };
  applyView();
}
function showNode(node) {
  const found = [...mapState.scene.querySelectorAll(".box")].find((b) => b.dataset.name === run().nodes[node].name);
  if (!found) return;
  const [, x, y] = /translate\(([-\d.]+) ([-\d.]+)\)/.exec(found.getAttribute("transform")).map(Number);
  const view = mapState.view;
  mapState.view = { k: view.k, x: mapState.drawing.clientWidth / 2 - x * view.k, y: mapState.drawing.clientHeight / 2 - y * view.k };
  applyView();
}

function watchMap(drawing) {
  const held = new Map();
  let moved = 0;
  drawing.addEventListener("wheel", (event) => {
    const out = event.deltaY > 0;
    if (out && mapState.view.k <= mapState.fitted * 1.001 && !event.ctrlKey) return; // all is seen: the page scrolls on
    event.preventDefault();
    const frame = drawing.getBoundingClientRect();
    zoomMap(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) * 0.004), event.clientX - frame.left, event.clientY - frame.top);
  }, { passive: false });
  drawing.addEventListener("pointerdown", (event) => { held.set(event.pointerId, [event.clientX, event.clientY]); moved = 0; mapState.dragged = false; });
  drawing.addEventListener("pointermove", (event) => {
    if (!held.has(event.pointerId)) return;
    const [px, py] = held.get(event.pointerId), dx = event.clientX - px, dy = event.clientY - py;
    moved += Math.abs(dx) + Math.abs(dy);
    if (moved > 5 && !mapState.dragged) { mapState.dragged = true; drawing.setPointerCapture(event.pointerId); }
    if (held.size === 2) {
      const [one, two] = [...held.entries()].map(([id, p]) => (id === event.pointerId ? [event.clientX, event.clientY] : p)), [a, b] = [...held.values()];
      const frame = drawing.getBoundingClientRect(), now = Math.hypot(one[0] - two[0], one[1] - two[1]), was = Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
      zoomMap(now / was, (one[0] + two[0]) / 2 - frame.left, (one[1] + two[1]) / 2 - frame.top);
    } else if (mapState.dragged) {
      mapState.view = { ...mapState.view, x: mapState.view.x + dx, y: mapState.view.y + dy };
      applyView();
    }
    held.set(event.pointerId, [event.clientX, event.clientY]);
  });
  for (const name of ["pointerup", "pointercancel"]) drawing.addEventListener(name, (event) => { held.delete(event.pointerId); setTimeout(() => { mapState.dragged = false; }, 0); });
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (event.key === "+" || event.key === "=") zoomMap(1.25);
    else if (event.key === "-") zoomMap(0.8);
    else if (event.key === "0") fitMap();
    else if (step) { mapState.view = { ...mapState.view, x: mapState.view.x + step[0], y: mapState.view.y + step[1] }; applyView(); }
    else return;
    event.preventDefault();
  });
  drawing.addEventListener("focusin", (event) => {
    const found = event.target.closest && event.target.closest(".box");
    if (!found || mapState.dragged) return;
    const frame = drawing.getBoundingClientRect(), box = found.getBoundingClientRect();
    if (box.left < frame.left || box.right > frame.right || box.top < frame.top || box.bottom > frame.bottom) {
      mapState.view = { ...mapState.view, x: mapState.view.x + frame.left + frame.width / 2 - (box.left + box.right) / 2, y: mapState.view.y + frame.top + frame.height / 2 - (box.top + box.bottom) / 2 };
      applyView();
    }
  });
}

function setUpMap() {
  const able = Object.entries(COLOURS).filter(([, how]) => run().layers.some((l) => known(how.of(l))));
  if (!able.some(([key]) => key === mapState.colour)) mapState.colour = able.length ? able[0][0] : "share";
  fill("map-colour", (able.length ? able : [["share", COLOURS.share]]).map(([key, how]) => h("option", { value: key, selected: key === mapState.colour }, how.title)));
  byId("map-colour").onchange = (event) => { mapState.colour = event.target.value; drawMap(); };
  byId("map-in").onclick = () => zoomMap(1.25);
  byId("map-out").onclick = () => zoomMap(0.8);
  byId("map-fit").onclick = fitMap;
  byId("map-unfold").onclick = () => { mapState.open = new Set(run().blocks.keys()); mapState.view = null; drawMap(); };
  byId("map-fold").onclick = () => { mapState.open = new Set(); mapState.view = null; drawMap(); };
  byId("map-svg").onclick = () => downloadSvg(mapState.drawing, "map");
  drawMap();
}
