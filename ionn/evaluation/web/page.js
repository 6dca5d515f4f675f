// Draws the charts of the page, and has its choosers choose. Plotly is in the page as base64 of a gzip file.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const PAPER = 640; // pixels
const CONFIG = { responsive: true, displayModeBar: false, displaylogo: false };

async function loadPlotly() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

function chosen(entry, key) {
  return DATA.choices[key][entry[key]];
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// A select for each of `keys` in `container`: for each key, entries have the number of one of DATA.choices. Whatever is
// chosen, the other selects keep their values if there is such an entry. `show` gets the entry, now and whenever another is chosen.
function choosers(container, entries, keys, show) {
  const selects = keys.map((key) => {
    const values = [...new Set(entries.map((entry) => entry[key]))];
    const select = element("select", {}, ...values.map((value) => new Option(DATA.choices[key][value], value)));
    select.dataset.key = key;
    container.append(element("label", {}, key, select));
    return select;
  });
  const agreement = (entry) => selects.filter((select, at) => entry[keys[at]] === Number(select.value)).length;
  function choose(changed) {
    const possible = entries.filter((entry) => !changed || entry[changed.dataset.key] === Number(changed.value));
    const best = possible.reduce((one, other) => (agreement(other) > agreement(one) ? other : one));
    selects.forEach((select, at) => { select.value = best[keys[at]]; });
    show(best);
  }
  selects.forEach((select) => select.addEventListener("change", () => choose(select)));
  choose();
}

// On a screen that is touched, dragging scrolls the page.
function layoutOf(chart) {
  return matchMedia("(pointer: coarse)").matches ? { ...chart.layout, dragmode: false } : chart.layout;
}

// Numbers on bars that are narrow could not be read.
function dataOf(chart, place) {
  return place.clientWidth < 420 ? chart.data.map(({ texttemplate, ...rest }) => rest) : chart.data;
}

function drawFindings() {
  return [...document.querySelectorAll("[data-finding]")].map((place) => {
    const chart = DATA.findings[place.dataset.finding];
    const layout = { ...layoutOf(chart), showlegend: chart.data.length > 1 };
    return Plotly.newPlot(place, dataOf(chart, place), layout, CONFIG);
  });
}

function swatch(line) {
  const dashes = { dash: "8 4", dashdot: "8 3 2 3", dot: "2 3", longdash: "12 4" };
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(namespace, "path");
  const look = { d: "M0 4H30", stroke: line.color, "stroke-width": line.width, "stroke-dasharray": dashes[line.dash] || "" };
  Object.entries(look).forEach(([name, value]) => path.setAttribute(name, value));
  svg.append(path);
  return svg;
}

function decoded(text) {
  return new DOMParser().parseFromString(text, "text/html").documentElement.textContent;
}

function latencySection() {
  const container = document.getElementById("latency-choosers");
  if (!container) return;
  const place = document.getElementById("latency-chart");
  const boxes = document.getElementById("latency-algorithms");
  const hidden = new Set();
  let drawn;
  choosers(container, DATA.latencies, ["testbed", "model"], (entry) => {
    const { chart } = entry;
    const draw = () => {
      const shown = chart.data.filter((line) => !hidden.has(line.legendgroup));
      drawn = Plotly.react(place, shown, { ...layoutOf(chart), showlegend: false }, CONFIG);
      place.dataset.lines = new Set(shown.map((line) => line.legendgroup)).size;
    };
    const lines = chart.data.filter((line) => line.showlegend !== false);
    boxes.replaceChildren(element("legend", {}, "algorithm"), ...lines.map((line) => {
      const box = element("input", { type: "checkbox", checked: !hidden.has(line.legendgroup) });
      box.addEventListener("change", () => {
        hidden[box.checked ? "delete" : "add"](line.legendgroup);
        draw();
      });
      return element("label", {}, box, swatch(line.line), decoded(line.legendgroup));
    }));
    const subject = `${chosen(entry, "model")}, ${chosen(entry, "testbed")}`;
    document.getElementById("latency-subject").textContent = subject;
    place.setAttribute("aria-label", `${chart.about}: ${subject}. The tables below have the numbers.`);
    draw();
  });
  return drawn;
}

// A page that is printed has everything open, and charts and a replay that fit the paper.
function prepareForPrint(player) {
  const closed = [];
  addEventListener("beforeprint", () => {
    closed.push(...document.querySelectorAll("details:not([open])"));
    closed.forEach((each) => { each.open = true; });
    document.querySelectorAll(".js-plotly-plot").forEach((place) => Plotly.relayout(place, { width: PAPER }));
    if (player) player.build(PAPER);
  });
  addEventListener("afterprint", () => {
    closed.splice(0).forEach((each) => { each.open = false; });
    document.querySelectorAll(".js-plotly-plot").forEach((place) => Plotly.relayout(place, { width: null, autosize: true }));
    if (player) player.build();
  });
}

async function start() {
  const replays = document.getElementById("replay-choosers");
  const player = replays ? new Replay() : null;
  if (player) {
    choosers(replays, DATA.replays, ["testbed", "model", "algorithm"], (entry) => {
      player.load(entry.run, `${chosen(entry, "model")} with ${chosen(entry, "algorithm")}, ${chosen(entry, "testbed")}`);
    });
    player.addChoosers(replays);
  }
  prepareForPrint(player);
  await loadPlotly();
  await Promise.all([...drawFindings(), latencySection()]);
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => {
  const trouble = document.getElementById("trouble");
  trouble.textContent = `Not all of this page could be drawn (${error.message}). A browser from 2023 or later can; the tables are complete.`;
  trouble.hidden = false;
  console.error(error);
});
