// Where the boxes of the map stand: ranks from top to bottom, wrapped into columns like the lines of a text.
// items: [{w, h}], edges: [[from, to]] from earlier to later items; at most so many columns. Gives the place of each item and the path of each edge.
function layOut(items, edges, aspect, most) {
  const n = items.length, GAP_X = 16, GAP_Y = 20, GUTTER = 46;
  const into = items.map(() => []), from = items.map(() => []);
  edges.forEach(([a, b]) => { from[a].push(b); into[b].push(a); });
  const rank = new Array(n).fill(0);
  for (let i = 0; i < n; i++) for (const p of into[i]) rank[i] = Math.max(rank[i], rank[p] + 1);
  for (let i = n - 1; i >= 0; i--) if (!into[i].length && from[i].length) rank[i] = Math.max(0, Math.min(...from[i].map((k) => rank[k])) - 1);

  // Long edges go through a point in each rank that they pass.
  const cells = items.map((item, i) => ({ w: item.w, h: item.h, rank: rank[i], up: [], down: [], x: 0, item: i }));
  const routes = edges.map(([a, b]) => {
    const route = [cells[a]];
    for (let r = rank[a] + 1; r < rank[b]; r++) { const point = { w: 8, h: 0, rank: r, up: [], down: [], x: 0, item: -1 }; cells.push(point); route.push(point); }
    route.push(cells[b]);
    for (let k = 1; k < route.length; k++) { route[k - 1].down.push(route[k]); route[k].up.push(route[k - 1]); }
    return route;
  });
  const ranks = [];
  for (const cell of cells) (ranks[cell.rank] ||= []).push(cell);
  const mean = (list) => sum(list.map((c) => c.x)) / list.length;
  ranks.forEach((row) => row.forEach((cell, k) => { cell.x = k; }));
  for (let turn = 0; turn < 6; turn++) {
    const rows = turn % 2 ? [...ranks].reverse() : ranks;
    for (const row of rows) {
      for (const cell of row) { const near = turn % 2 ? cell.down : cell.up; cell.wish = near.length ? mean(near) : cell.x; }
      row.sort((a, b) => a.wish - b.wish);
      row.forEach((cell, k) => { cell.x = k - (row.length - 1) / 2; });
    }
  }
  // The nearest places to what is wished with room for all: neighbours that would overlap move as one.
  const place = (row) => {
    const groups = [];
    let offset = 0;
    row.forEach((cell, k) => {
      if (k) offset += (row[k - 1].w + cell.w) / 2 + GAP_X;
      cell.offset = offset;
      const weight = cell.item < 0 ? 3 : 1;
      groups.push({ at: cell.wish - offset, weight, cells: [cell] });
      while (groups.length > 1 && groups.at(-2).at > groups.at(-1).at) {
        const last = groups.pop(), into = groups.at(-1), weight = into.weight + last.weight;
        into.at = (into.at * into.weight + last.at * last.weight) / weight;
        into.weight = weight;
        into.cells.push(...last.cells);
      }
    });
    for (const group of groups) for (const cell of group.cells) cell.x = group.at + cell.offset;
  };
  for (const row of ranks) { for (const cell of row) cell.wish = 0; place(row); }
  for (let turn = 0; turn < 8; turn++) {
    const rows = turn % 2 ? [...ranks].reverse() : ranks;
    for (const row of rows) {
      for (const cell of row) { const near = turn % 2 ? cell.down : cell.up; cell.wish = near.length ? mean(near) : cell.x; }
      place(row);
    }
  }
  // Columns: as many that the whole has the shape of its frame, broken where few edges go across.
  const height = ranks.map((row) => Math.max(...row.map((c) => c.h)) + GAP_Y);
  const left = (row) => Math.min(...row.map((c) => c.x - c.w / 2)), right = (row) => Math.max(...row.map((c) => c.x + c.w / 2));
  const total = sum(height);
  const across = ranks.map((row, r) => sum(row.map((c) => c.down.length)));
  const wrapped = (most) => {
    const columns = [];
    let start = 0, used = 0;
    for (let r = 0; r < ranks.length; r++) {
      if (used + height[r] > most && r > start) {
        let best = r;
        for (let b = r; b > start + 1 && sum(height.slice(start, b)) > 0.72 * most; b--) if (across[b - 1] < across[best - 1]) best = b;
        columns.push([start, best]);
        start = best;
        used = sum(height.slice(start, r));
      }
      used += height[r];
    }
    columns.push([start, ranks.length]);
    const widths = columns.map(([a, b]) => Math.max(...ranks.slice(a, b).map(right)) - Math.min(...ranks.slice(a, b).map(left)));
    const tall = Math.max(...columns.map(([a, b]) => sum(height.slice(a, b))));
    return { columns, widths, tall, wide: sum(widths) + GUTTER * (columns.length - 1) };
  };
  // A last column of one box looks lost: a little more room for each of the others takes it in.
  let chosen = wrapped(Infinity);
  const off = (c) => Math.abs(Math.log(c.wide / c.tall / aspect));
  for (let parts = 2; parts <= most; parts++) {
    for (const slack of [10, 60, 120]) {
      const next = wrapped(total / parts + slack);
      if (next.columns.length <= most && off(next) < off(chosen)) chosen = next;
    }
    if (wrapped(total / parts).wide / chosen.tall > 2 * aspect) break;
  }
  let x0 = 0;
  chosen.columns.forEach(([a, b], column) => {
    const low = Math.min(...ranks.slice(a, b).map(left));
    let y = 34;
    for (let r = a; r < b; r++) {
      for (const cell of ranks[r]) { cell.x += x0 - low; cell.y = y + (height[r] - GAP_Y) / 2; cell.column = column; cell.edge = x0 + chosen.widths[column] + GUTTER / 2; }
      y += height[r];
    }
    x0 += chosen.widths[column] + GUTTER;
  });
  const f = (v) => v.toFixed(1);
  const paths = routes.map((route) => {
    let d = `M${f(route[0].x)} ${f(route[0].y + route[0].h / 2)}`;
    for (let k = 1; k < route.length; k++) {
      const one = route[k - 1], two = route[k], y1 = one.y + one.h / 2, y2 = two.y - two.h / 2;
      if (one.column === two.column) {
        const bend = (y2 - y1) / 2;
        d += Math.abs(one.x - two.x) < 0.5 ? `L${f(two.x)} ${f(y2)}` : `C${f(one.x)} ${f(y1 + bend)} ${f(two.x)} ${f(y2 - bend)} ${f(two.x)} ${f(y2)}`;
      } else {
        d += `C${f(one.x)} ${f(y1 + 16)} ${f(one.edge)} ${f(y1 + 16)} ${f(one.edge)} ${f(y1 - 8)}L${f(one.edge)} ${f(y2)}C${f(one.edge)} ${f(y2 - 26)} ${f(two.x)} ${f(y2 - 26)} ${f(two.x)} ${f(y2)}`;
      }
      if (two.item < 0) d += `L${f(two.x)} ${f(two.y)}`;
    }
    return d;
  });
  return { places: cells.slice(0, n).map((c) => ({ x: c.x, y: c.y })), paths, wide: x0 - GUTTER, tall: chosen.tall + 40 };
}
