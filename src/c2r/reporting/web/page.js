"use strict";
// The switch of the theme, and tables as CSV. All else is there without a script.

const root = document.documentElement;
const switcher = document.getElementById("theme");

function setTheme(name) {
  root.dataset.theme = name;
  switcher.textContent = name === "dark" ? "Light" : "Dark";
}

function csvOf(table) {
  const quote = (cell) => {
    const value = cell.dataset.value ?? cell.textContent;
    const isText = !cell.classList.contains("number");
    // A spreadsheet would run a name that begins like a formula.
    const safe = isText && /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [...table.rows].map((row) => [...row.cells].map(quote).join(",")).join("\r\n") + "\r\n";
}

function download(id) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(
    new Blob([csvOf(document.getElementById(id))], { type: "text/csv" }));
  link.download = `${id.replace(/^table-/, "")}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

for (const button of document.querySelectorAll("button.csv")) {
  button.addEventListener("click", () => download(button.dataset.table));
}
switcher.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) =>
  setTheme(event.matches ? "dark" : "light"));
setTheme(root.dataset.theme);
