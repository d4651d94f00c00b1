"use strict";
// One chosen row, in tables, in pictures, and with the command that runs it.
const selection = {
  row: null,
  load: null,

  choose(row, load) {
    this.row = row;
    this.load = load;
    figures.forEach((figure) => figure.highlight(row, load));
    const found = tables.filter((table) => table.show(row));
    this.panel();
    if (row !== null && found.length) {
      const line = found[0].body.querySelector(`tr[data-row="${row}"]`);
      if (line && !document.activeElement.closest("tr[data-row]")) {
        line.scrollIntoView({ block: "nearest" });
      }
    }
  },

  panel() {
    const panel = document.getElementById("selection");
    panel.hidden = this.row === null;
    if (panel.hidden) return;
    const close = make("button", { type: "button", textContent: "Close", className: "close" });
    close.addEventListener("click", () => this.choose(null, null));
    const top = make("div", { className: "top" }, make("b", { textContent: this.title() }), close);
    const inner = make("div", {}, top);
    const run = pageData.run;
    if (run) {
      const file = run.files[this.row], base = baseRow(run, this.row);
      const made = base === undefined ? "no winner is of its mode" : `made of ${run.files[base]}`;
      const where = file ? `Run file: ${file}.` : `No run file of its own; ${made}.`;
      const can = file || base !== undefined;
      inner.append(make("p", { textContent: can ? `${where} Run it in the sweep's folder:` : where }));
      if (can) inner.append(commandLine(runCommand(run, this.row, this.load)));
    }
    panel.replaceChildren(inner);
  },

  title() {
    const name = rowValue(this.row, "layout");
    const words = [name || `row ${this.row}`, `trial ${this.row}`];
    if (this.load !== null) words.push(`load ${grouped(Number(this.load.toPrecision(3)))}`);
    return words.join(" · ");
  },
};

// The first winner whose cluster is of the row's mode: the other mode's file has other sections.
function baseRow(run, row) {
  return run.bases.find((base) => rowValue(base, "cluster.mode") === rowValue(row, "cluster.mode"));
}

// `dynosim run` with what the row has other than the run file.
function runCommand(run, row, load) {
  const base = baseRow(run, row), file = run.files[row] || run.files[base];
  const parts = ["dynosim run", quoted(file)];
  const set = (key, value) => parts.push("--set", quoted(`${key}=${value}`));
  if (!run.files[row]) {
    for (const key of run.keys) {
      const value = rowValue(row, key);
      if (value !== null && value !== rowValue(base, key)) set(key, value);
    }
  }
  // A row's own run file has its load; another row's, and another load, must be said.
  const own = load === null && !run.files[row] && run.load_key;
  const tried = own ? rowValue(row, run.capacity_key) : load;
  if (tried !== null && run.load_key) set(run.load_key, Number((tried * run.load_unit).toPrecision(6)));
  return parts.join(" ");
}
const quoted = (text) => (/^[\w.,:\/=+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function commandLine(text) {
  const copy = make("button", { type: "button", className: "copy", textContent: "Copy" });
  const line = make("div", { className: "command" }, make("span", { textContent: "run" }));
  line.append(make("code", { textContent: text }), copy);
  return line;
}

function startSelection() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && selection.row !== null) selection.choose(null, null);
  });
  document.addEventListener("click", async (event) => {
    if (!event.target.matches(".copy")) return;
    const code = event.target.parentElement.querySelector("code");
    getSelection().selectAllChildren(code); // at least marked, where nothing may be copied
    try {
      await navigator.clipboard.writeText(code.textContent);
      event.target.textContent = "Copied";
    } catch { event.target.textContent = "Marked"; }
  });
}

theme.start();
startTables();
startFigures();
startSelection();
