"use strict";
// Two themes: that of the reader's system until the button is used, then the chosen one.
const pageData = JSON.parse(document.getElementById("page-data").textContent);
const theme = {
  listeners: [],
  key: "dynosim-theme",

  isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  },
  choose(name) {
    document.documentElement.dataset.theme = name;
    try { localStorage.setItem(theme.key, name); } catch { /* a browser that keeps nothing */ }
    theme.changed();
  },
  changed() {
    const button = document.getElementById("theme");
    button.textContent = theme.isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `${button.textContent} theme`);
    theme.listeners.forEach((listener) => listener());
  },
  // The value of a colour of page.css in the theme that shows.
  color(name) {
    const probe = document.createElement("span");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  },
  // Marks are described in the light theme's colours.
  mark(color) {
    if (!theme.isDark()) return color;
    const plain = pageData.dark_colors[color.slice(0, 7)];
    return plain === undefined ? color : plain + color.slice(7);
  },
  start() {
    let kept = null;
    try { kept = localStorage.getItem(theme.key); } catch { /* likewise */ }
    if (kept) document.documentElement.dataset.theme = kept;
    const button = document.getElementById("theme");
    button.hidden = false;
    button.addEventListener("click", () => theme.choose(theme.isDark() ? "light" : "dark"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme.changed);
    theme.changed();
  },
};
