"use strict";

/* What cannot be compared stands last, in either order. */
function sortBy(table, index, descending) {
  const value = (row) => row.cells[index].dataset.value;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const numeric = rows.every((row) => value(row) === "" || Number.isFinite(Number(value(row))));
  rows.sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    return descending ? -order : order;
  });
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headers = Array.from(table.tHead.rows[0].cells);
  headers.forEach((header, index) => {
    header.querySelector("button").addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") === "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(table, index, descending);
    });
  });
}

const text = document.getElementById("filter");
const selects = Array.from(document.querySelectorAll(".filters select"));

function filter() {
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const table of document.querySelectorAll("table.filtered")) {
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const cells = Array.from(row.querySelectorAll("td.name"));
      const name = cells.map((cell) => cell.textContent).join(" ").toLowerCase();
      const chosen = selects.every((select) => select.value === ""
        || cells.some((cell) => cell.dataset.column === select.dataset.column && cell.textContent === select.value));
      row.hidden = !(chosen && words.every((word) => name.includes(word)));
      shown += row.hidden ? 0 : 1;
    }
    document.getElementById("shown").textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
  }
}

text.addEventListener("input", filter);
for (const select of selects) select.addEventListener("change", filter);
const form = document.querySelector(".filters");
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false; // without a script nothing is filtered, and the form is not shown
