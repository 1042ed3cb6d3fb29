// The measurements of a job as plots.
import uPlot from "uplot";

const holder = document.getElementById("plots");
const names = JSON.parse(document.getElementById("plot-names")?.textContent ?? "{}");
const kinds = [
  ["cpu_percent", "%"], ["memory_mb", "MB"], ["gpu_percent", "%"], ["gpu_memory_mb", "MB"], ["gpu_power_w", "W"], ["io_read_mbps", "MB/s"], ["io_write_mbps", "MB/s"],
];
const colours = ["#6d5ff5", "#0f9f8f", "#e07a1f", "#d6408f", "#3b82f6", "#8a9a1b", "#b45309", "#64748b"];
const plots = new Map();
const lang = navigator.languages.find((one) => one.startsWith(document.documentElement.lang)) ?? document.documentElement.lang;
const clock = new Intl.DateTimeFormat(lang, { hour: "2-digit", minute: "2-digit" });

function axis() {
  const style = getComputedStyle(document.documentElement);
  return { stroke: style.getPropertyValue("--tblr-secondary").trim() || "#667", grid: { stroke: "rgba(128,128,140,.15)", width: 1 }, ticks: { show: false } };
}

// The newest values as a table, for who cannot see a plot.
const rows = 20;
const labelOf = (one) => [one.node, one.device?.slice(0, 12)].filter(Boolean).join(" ");
const second = new Intl.DateTimeFormat(lang, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
function fill(table, title, times, series) {
  const caption = document.createElement("caption");
  caption.className = "visually-hidden";
  caption.textContent = title;
  const head = document.createElement("thead");
  const line = head.insertRow();
  for (const text of [names.time, ...series.map(labelOf)]) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = text;
    line.append(cell);
  }
  const body = document.createElement("tbody");
  for (let at = times.length - 1; at >= Math.max(0, times.length - rows); at--) {
    const row = body.insertRow();
    row.insertCell().textContent = second.format(times[at] * 1000);
    for (const one of series) row.insertCell().textContent = one.values[at]?.toFixed(1) ?? "\u2013";
  }
  table.replaceChildren(caption, head, body);
}

function draw(data) {
  for (const [name, unit] of kinds) {
    const series = data.series.filter((one) => one.name === name);
    const values = [data.times, ...series.map((one) => one.values)];
    if (series.length === 0 || data.times.length < 2) continue;
    const known = plots.get(name);
    if (known && known.plot.series.length === series.length + 1) {
      known.plot.setData(values);
    } else {
      if (known) known.box.remove();
      const box = document.createElement("div");
      box.className = "col-md-6";
      const title = document.createElement("h3");
      title.className = "plot-title";
      title.textContent = `${names[name]} (${unit})`;
      const frame = document.createElement("div");
      frame.setAttribute("role", "img");
      const details = document.createElement("details");
      details.className = "values";
      const summary = document.createElement("summary");
      summary.textContent = names.values;
      const table = document.createElement("table");
      table.className = "table table-sm";
      details.append(summary, table);
      box.append(title, frame, details);
      holder.append(box);
      const plot = new uPlot({
        width: Math.max(240, frame.clientWidth), height: 150, legend: { show: series.length > 1 }, cursor: { y: false },
        scales: { y: { range: (_, low, high) => [0, unit === "%" ? Math.max(100, high) : Math.max(1, high * 1.1)] } },
        axes: [{ ...axis(), size: 30, space: 85, values: (_, splits) => splits.map((at) => (splits.at(-1) - splits[0] < 300 ? second : clock).format(at * 1000)) }, { ...axis(), size: 56 }],
        series: [{}, ...series.map((one, at) => ({
          label: labelOf(one), stroke: colours[at % colours.length], width: 1.75, spanGaps: false,
        }))],
      }, values, frame);
      new ResizeObserver(() => plot.setSize({ width: Math.max(240, frame.clientWidth), height: 150 })).observe(frame);
      plots.set(name, { plot, box, frame, table });
    }
    const last = series.map((one) => one.values.at(-1)).filter((v) => v !== null && v !== undefined).map((v) => v.toFixed(1)).join(", ");
    fill(plots.get(name).table, `${names[name]} (${unit})`, data.times, series);
    plots.get(name).frame.setAttribute("aria-label", `${names[name]}: ${last} ${unit}`);
  }
  document.getElementById("plots-none").hidden = plots.size > 0;
}

let timer;
async function fetchAll() {
  clearTimeout(timer);
  if (!document.hidden) {
    try {
      const answer = await fetch(holder.dataset.url, { headers: { Accept: "application/json" } });
      if (answer.ok) draw(await answer.json());
    } catch { /* the banner says so */ }
  }
  clearTimeout(timer);
  if (document.getElementById("job-live")) timer = setTimeout(fetchAll, plots.size > 0 ? 10000 : 5000);
}
if (holder) {
  fetchAll();
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && plots.size === 0) fetchAll();
  });
  // Lines and letters have the colours of the theme they were drawn in.
  new MutationObserver(() => {
    for (const { plot } of plots.values()) plot.destroy();
    plots.clear();
    holder.replaceChildren();
    fetchAll();
  }).observe(document.documentElement, { attributes: true, attributeFilter: ["data-bs-theme"] });
}
