"use strict";
// Draws the figures embedded in the page, in the colours of the theme in force, and fills tables.

const ARRAYS = {
  u1: Uint8Array, i1: Int8Array, u2: Uint16Array, i2: Int16Array,
  u4: Uint32Array, i4: Int32Array, f4: Float32Array, f8: Float64Array,
};
const charts = JSON.parse(document.getElementById("charts").textContent);
const shown = Object.fromEntries(Object.keys(charts).map((slug) => [slug, 0]));
const root = document.documentElement;

// An array as Python encodes it, as rows of numbers; a plain array stays as it is.
function decode(values) {
  if (!values || !values.bdata) return values;
  const bytes = Uint8Array.from(atob(values.bdata), (letter) => letter.charCodeAt(0));
  const flat = new ARRAYS[values.dtype](bytes.buffer);
  if (!values.shape) return Array.from(flat);
  const width = Number(values.shape.split(",")[1]);
  const rows = [];
  for (let start = 0; start < flat.length; start += width) {
    rows.push(Array.from(flat.subarray(start, start + width)));
  }
  return rows;
}

const text = (label) => new DOMParser().parseFromString(label, "text/html").body.textContent;
const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();

function figureOf(slug) {
  const figure = charts[slug].figures[shown[slug]];
  for (const trace of figure.data) {
    for (const key of ["x", "y", "z"]) if (trace[key]) trace[key] = decode(trace[key]);
  }
  return figure;
}

function inTheme(figure) {
  const palette = color("--series").split(" ");
  const axis = { gridcolor: color("--grid"), linecolor: color("--line"), zerolinecolor: color("--line") };
  const data = figure.data.map((trace, index) => {
    if (trace.type === "heatmap") return trace;
    const own = palette[index % palette.length];
    return {
      ...trace,
      marker: { ...trace.marker, color: own },
      ...(trace.type === "scatter" && { line: { ...trace.line, color: own } }),
    };
  });
  const layout = {
    ...figure.layout,
    xaxis: { ...axis, ...figure.layout.xaxis },
    yaxis: { ...axis, automargin: true, ...figure.layout.yaxis },
    font: { color: color("--ink"), family: "system-ui, sans-serif", size: 13 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 56, r: 12, t: 12, b: 48 },
    legend: { orientation: "h", yanchor: "bottom", y: 1.02, x: 0 },
    hoverlabel: { bgcolor: color("--card"), font: { color: color("--ink") } },
    dragmode: false,
  };
  return { data, layout };
}

function draw(slug) {
  const { data, layout } = inTheme(figureOf(slug));
  const place = document.getElementById(`plot-${slug}`);
  // Else the place, not the figure, would shrink when the window is resized.
  place.style.minHeight = place.style.height = `${layout.height}px`;
  Plotly.react(place, data, layout, { displayModeBar: false, responsive: true });
}

function fillTable(details) {
  const slug = details.dataset.chart;
  const [trace] = figureOf(slug).data;
  const head = [details.dataset.corner, ...trace.x.map(text)];
  const rows = trace.z.map((row, index) => [text(trace.y[index]), ...row]);
  const table = details.querySelector("table");
  table.replaceChildren();
  const top = table.createTHead().insertRow();
  for (const name of head) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = name;
    top.append(cell);
  }
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const value of row) {
      const cell = line.insertCell();
      if (typeof value === "number") cell.className = "number";
      cell.textContent = Number.isNaN(value) ? "" : String(value);
    }
  }
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

function download(slug) {
  const link = document.createElement("a");
  const content = csvOf(document.getElementById(`table-${slug}`));
  link.href = URL.createObjectURL(new Blob([content], { type: "text/csv" }));
  link.download = `${slug}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function setTheme(name) {
  root.dataset.theme = name;
  document.getElementById("theme").textContent = name === "dark" ? "Light" : "Dark";
  drawn.forEach(draw);
}

// Figures are drawn when they come near the screen, so that a large report opens at once.
const drawn = new Set();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((entry) => entry.isIntersecting)) {
    watcher.unobserve(entry.target);
    const slug = entry.target.id.replace(/^plot-/, "");
    drawn.add(slug);
    draw(slug);
  }
}, { rootMargin: "50%" });

for (const details of document.querySelectorAll("details[data-corner]")) {
  details.addEventListener("toggle", () => details.open && fillTable(details));
}
for (const slider of document.querySelectorAll("input[type=range]")) {
  const slug = slider.dataset.chart;
  const details = document.querySelector(`details[data-chart="${slug}"]`);
  slider.addEventListener("input", () => {
    shown[slug] = Number(slider.value);
    const name = charts[slug].names[shown[slug]];
    slider.parentElement.querySelector("output").textContent = name;
    slider.setAttribute("aria-valuetext", name);
    draw(slug);
    if (details.open) fillTable(details);
  });
}
for (const button of document.querySelectorAll("button.csv")) {
  button.addEventListener("click", () => download(button.dataset.chart));
}
const switcher = document.getElementById("theme");
switcher.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) =>
  setTheme(event.matches ? "dark" : "light"));
setTheme(root.dataset.theme);
document.querySelectorAll(".plot").forEach((place) => watcher.observe(place));
let themeOnScreen;
addEventListener("beforeprint", () => {
  themeOnScreen = root.dataset.theme;
  root.dataset.theme = "light";
  Object.keys(charts).forEach(draw);
});
addEventListener("afterprint", () => setTheme(themeOnScreen));
