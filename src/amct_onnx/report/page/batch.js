// The table of jobs: sorts by a heading, searches, and shows the jobs in one state. All rows are in the page already.
const byId = (id) => document.getElementById(id);
const body = byId("table").tBodies[0], rows = [...body.rows], headings = [...byId("table").tHead.rows[0].cells];

function sortBy(place, up) {
  const value = (row) => { const cell = row.cells[place]; return cell.dataset.value === undefined ? null : headings[place].classList.contains("n") ? +cell.dataset.value : cell.dataset.value; };
  const sign = up ? 1 : -1;
  const sorted = [...rows].sort((a, b) => {
    const x = value(a), y = value(b);
    if (x === null || y === null) return x !== null ? -1 : y !== null ? 1 : rows.indexOf(a) - rows.indexOf(b);
    return (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y) * sign || rows.indexOf(a) - rows.indexOf(b);
  });
  body.append(...sorted);
  headings.forEach((heading, k) => { if (k === place) heading.setAttribute("aria-sort", up ? "ascending" : "descending"); else heading.removeAttribute("aria-sort"); });
}

function filter() {
  const words = byId("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean), state = byId("filter-state").value;
  for (const row of rows) row.hidden = (state && row.dataset.state !== state) || !words.every((w) => row.textContent.toLowerCase().includes(w));
  const shown = rows.filter((row) => !row.hidden).length;
  byId("table-note").textContent = `${shown === rows.length ? "" : `${shown} of `}${rows.length} ${rows.length === 1 ? "job" : "jobs"}. A click on a heading sorts.`;
}

headings.forEach((heading, place) => {
  const button = heading.querySelector("button");
  button.addEventListener("click", () => {
    const now = heading.getAttribute("aria-sort");
    sortBy(place, now ? now === "descending" : !("down" in button.dataset));
  });
});
byId("search").oninput = filter;
byId("filter-state").onchange = filter;
filter();
document.documentElement.dataset.ready = "";
