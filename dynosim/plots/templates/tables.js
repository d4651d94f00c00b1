"use strict";
// Tables that sort, filter and turn pages. Those with many rows come as JSON and only the rows that
// show are elements; small ones are elements already, and are read.
const PAGE_ROWS = 100;
const FILTER_FROM = 12;

class PageTable {
  constructor(element) {
    const isData = element.dataset.kind === "data";
    const { columns, rows } = isData
      ? JSON.parse(element.querySelector("script").textContent)
      : readTable(element.querySelector("table"));
    Object.assign(this, { element, columns, rows, page: 0, sort: null, isDescending: false });
    this.shown = this.columns.map((_, i) => i).filter((i) => !this.columns[i].is_hidden);
    this.order = rows.map((_, i) => i);
    this.isLinked = isData;
    this.build();
    this.fill();
  }

  build() {
    this.body = make("tbody");
    this.heads = this.shown.map((i) => this.head(i));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...this.heads)), this.body);
    this.count = make("span", { className: "count" });
    this.filter = make("input", {
      type: "search", placeholder: "Filter rows", ariaLabel: "Filter rows",
    });
    this.filter.addEventListener("input", () => this.refilter());
    this.before = make("button", { type: "button", textContent: "Previous" });
    this.after = make("button", { type: "button", textContent: "Next" });
    this.before.addEventListener("click", () => this.turn(this.page - 1));
    this.after.addEventListener("click", () => this.turn(this.page + 1));
    this.pages = make("span", { className: "pages" }, this.before, this.after);
    const tools = make("div", { className: "tools" }, this.filter, this.count, this.pages);
    tools.hidden = this.rows.length < FILTER_FROM;
    this.element.replaceChildren(tools, make("div", { className: "scroll" }, table));
    if (this.isLinked) {
      this.body.addEventListener("click", (event) => this.picked(event.target));
      this.body.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          this.picked(event.target);
        }
      });
    }
  }

  head(i) {
    const column = this.columns[i];
    const button = make("button", { type: "button", textContent: column.title });
    const cell = make("th", { scope: "col", title: column.hint || "" }, button);
    cell.className = column.is_text ? "text" : "";
    button.addEventListener("click", () => this.sortBy(i));
    return cell;
  }

  picked(target) {
    const line = target.closest("tr[data-row]");
    if (line) selection.choose(Number(line.dataset.row), null);
  }

  // Numbers begin with the largest, words with the first.
  sortBy(i) {
    const isSame = this.sort === i;
    this.isDescending = isSame ? !this.isDescending : !this.columns[i].is_text;
    this.sort = i;
    this.heads.forEach((head, place) => {
      const direction = this.isDescending ? "descending" : "ascending";
      if (this.shown[place] === i) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    });
    this.refilter();
  }

  refilter() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    this.order = this.rows.map((_, i) => i).filter((i) => {
      const text = words.length ? this.rowText(i) : "";
      return words.every((word) => text.includes(word));
    });
    if (this.sort !== null) this.order.sort((a, b) => this.compare(a, b) || a - b);
    this.page = 0;
    this.fill();
  }

  rowText(i) {
    return this.shown.map((k) => shownCell(this.rows[i][k], this.columns[k])).join(" ").toLowerCase();
  }

  // What is not known comes last, whichever way.
  compare(a, b) {
    const [x, y] = [a, b].map((i) => cellValue(this.rows[i][this.sort]));
    if (x === null || y === null) return (x === null) - (y === null);
    const both = typeof x === "number" && typeof y === "number";
    const order = both ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    return this.isDescending ? -order : order;
  }

  turn(page) {
    this.page = Math.max(0, Math.min(page, Math.ceil(this.order.length / PAGE_ROWS) - 1));
    this.fill();
  }

  fill() {
    const start = this.page * PAGE_ROWS;
    const visible = this.order.slice(start, start + PAGE_ROWS);
    this.body.replaceChildren(...visible.map((i) => this.line(i)));
    const [some, all] = [this.order.length, this.rows.length];
    const from = some ? start + 1 : 0;
    this.count.textContent = some > PAGE_ROWS
      ? `${grouped(from)} to ${grouped(start + visible.length)} of ${grouped(some)}`
      : `${grouped(some)} of ${grouped(all)} rows`;
    this.pages.hidden = some <= PAGE_ROWS;
    this.before.disabled = this.page === 0;
    this.after.disabled = start + PAGE_ROWS >= some;
  }

  line(i) {
    const line = make("tr");
    for (const k of this.shown) {
      const cell = make("td", { textContent: shownCell(this.rows[i][k], this.columns[k]) });
      if (this.columns[k].is_text) {
        cell.className = cell.textContent.length > 30 ? "text wide" : "text";
      }
      line.append(cell);
    }
    if (this.isLinked) {
      const row = this.rows[i][0];
      line.dataset.row = row;
      line.tabIndex = 0;
      line.setAttribute("aria-selected", String(selection.row === row));
    }
    return line;
  }

  // Show a row, on its page; true if the table has it.
  show(row) {
    if (!this.isLinked) return false;
    let place = this.order.findIndex((i) => this.rows[i][0] === row);
    if (place < 0 && this.rows.some((cells) => cells[0] === row)) {
      this.filter.value = "";
      this.refilter();
      place = this.order.findIndex((i) => this.rows[i][0] === row);
    }
    if (place >= 0) this.page = Math.floor(place / PAGE_ROWS);
    this.fill();
    return place >= 0;
  }
}

// A cell is a number, words, nothing, or a number with the words that show in its place.
const cellValue = (cell) => (Array.isArray(cell) ? cell[0] : cell);
function shownCell(cell, column) {
  if (Array.isArray(cell)) return cell[1];
  if (cell === null) return "-";
  return typeof cell === "number" && !column.is_setting ? grouped(cell) : String(cell);
}
const grouped = (n) => n.toLocaleString("en-US", { maximumFractionDigits: 12 });

// Columns and rows of a table that is there; what reads as a number is sorted as one.
function readTable(table) {
  const columns = [...table.tHead.rows[0].cells].map((cell) => ({
    title: cell.textContent, is_text: cell.classList.contains("text"),
  }));
  const rows = [...table.tBodies[0].rows].map((line) =>
    [...line.cells].map((cell) => readCell(cell.textContent)));
  return { columns, rows };
}
function readCell(text) {
  if (text === "-" || text === "") return null;
  const number = text.match(/^[-+]?[\d,]*\.?\d+(e[-+]?\d+)?(?=$|\s)/i);
  return number ? [Number(number[0].replaceAll(",", "")), text] : text;
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const tables = [];
function startTables() {
  document.querySelectorAll(".table").forEach((e) => tables.push(new PageTable(e)));
}

// A row's number by the key of its column, from any table that has it.
function rowValue(row, key) {
  for (const table of tables) {
    const place = table.columns.findIndex((column) => column.key === key);
    const cells = place < 0 ? undefined : table.rows.find((r) => r[0] === row);
    if (table.isLinked && cells) return cellValue(cells[place]);
  }
  return null;
}
