"use strict";
// Looks at a page as axe does, and as a keyboard does, and tells the page around it what it finds.
const found = { errors: window.pageErrors, faults: [] };
const fault = (rule, element, detail = "") => {
  const text = (element.textContent || "").trim().slice(0, 40);
  found.faults.push(`${rule}: <${element.tagName.toLowerCase()} class="${element.getAttribute("class") || ""}"> ${text} ${detail}`);
};
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const isSeen = (element) => element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length > 0;

// Colours, whatever CSS writes them as, over each other.
const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  pen.clearRect(0, 0, 1, 1);
  pen.fillStyle = colour;
  pen.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
};
const over = (top, below) => [...[0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])), 1];
const ground = (element) => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
};
const luminance = (colour) => {
  const [r, g, b] = colour.map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};

const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let smallest = 21;
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  if (!texts.currentNode.data.trim() || ["SCRIPT", "STYLE"].includes(element.tagName) || !isSeen(element)) continue;
  const style = getComputedStyle(element), size = parseFloat(style.fontSize);
  const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  const below = ground(element), ratio = contrast(over(rgba(style.color), below), below);
  smallest = Math.min(smallest, ratio);
  if (ratio < (isLarge ? 3 : 4.5)) fault("contrast", element, ratio.toFixed(2));
  if (size < 11) fault("small text", element, `${size}px`);
}
for (const path of all(".plot path.line:not(.faint), .plot path.mark")) {
  const below = ground(path.closest("svg"));
  if (contrast(rgba(getComputedStyle(path).stroke), below) < 3) fault("line contrast", path);
}

// Nothing wider than the page, except inside what scrolls by itself.
if (document.documentElement.scrollWidth > innerWidth) fault("page scrolls sideways", document.body, `${document.documentElement.scrollWidth}`);
for (const element of all("main *, header *")) {
  if (!isSeen(element) || element.closest(".wide, pre, .skip, .legend legend, details:not([open])") || element.closest("svg")) continue;
  const box = element.getBoundingClientRect();
  if (box.right > innerWidth + 1 || box.left < -1) fault("beyond the edge", element, `${Math.round(box.left)}..${Math.round(box.right)}`);
}
const ticks = all(".plot").filter(isSeen).map((plot) => all(".tick.x", plot).map((tick) => tick.getBoundingClientRect()));
for (const row of ticks) row.forEach((box, i) => { if (i && box.left < row[i - 1].right) found.faults.push("ticks cover each other"); });

// Names, headings, tables.
if (!document.documentElement.lang) fault("language", document.body);
if (!document.title || all("h1").length !== 1) fault("title", document.body);
all("h1, h2, h3, h4").reduce((level, heading) => {
  const own = Number(heading.tagName[1]);
  if (own > level + 1) fault("heading level skipped", heading);
  return own;
}, 0);
for (const image of all("img")) if (!(image.getAttribute("alt") || "").trim()) fault("image without a text", image);
for (const figure of all("figure")) if (!figure.querySelector("figcaption")?.textContent.trim()) fault("figure without a title", figure);
for (const part of all('[role="img"], [role="region"]')) if (!part.getAttribute("aria-label")?.trim()) fault("no label", part);
for (const input of all("input")) if (![...input.labels].some((label) => label.textContent.trim())) fault("input without a label", input);
for (const table of all("table")) {
  if (!table.caption?.textContent.trim()) fault("table without a caption", table);
  if (all("th", table).some((cell) => !cell.scope)) fault("header cell without a scope", table);
  if (!all("tbody tr", table).every((row) => row.cells[0].tagName === "TH")) fault("row without a header", table);
}
const ids = all("[id]").map((element) => element.id);
if (new Set(ids).size !== ids.length) fault("id twice", document.body);
for (const link of all('a[href^="#"]')) if (!document.getElementById(link.hash.slice(1))) fault("dead link", link);

// The keyboard.
for (const element of all("a, input, summary, [tabindex]")) if (element.tabIndex !== 0) fault("not in the order of tabs", element);
for (const element of all("main *")) {
  const scrolls = ["auto", "scroll"].includes(getComputedStyle(element).overflowX) && element.scrollWidth > element.clientWidth;
  if (scrolls && isSeen(element) && element.tabIndex !== 0) fault("scrolls, but not by keyboard", element);
}
found.readings = [];
for (const figure of all("figure.chart").filter((figure) => figure.querySelector(".plot[data-lines]") && isSeen(figure))) {
  const plot = figure.querySelector(".plot"), reading = figure.querySelector(".reading");
  const press = (key) => plot.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  plot.focus();
  if (document.activeElement !== plot) fault("can't be focused", plot);
  if (getComputedStyle(plot).outlineStyle === "none") fault("focus is not seen", plot);
  const lines = JSON.parse(plot.dataset.lines).lines;
  const first = lines.find((line) => line.xs.length);
  if (!first) continue;
  press("Home");
  if (!reading.textContent.includes(` ${first.xs[0].toLocaleString("en")}: ${first.name} ${first.texts[0]}`)) fault("reading", figure, reading.textContent);
  press("ArrowRight");
  if (first.xs.length > 1 && !reading.textContent.includes(`${first.name} ${first.texts[1]}`)) fault("reading after a step", figure, reading.textContent);
  found.readings.push(reading.textContent);
  const box = figure.querySelector("[data-shows]");
  if (box) {
    box.click();
    const group = all("[data-line]", figure).find((line) => line.dataset.line === box.dataset.shows);
    if (group.style.display !== "none") fault("line is not hidden", figure);
    box.click();
  }
}
found.isDark = matchMedia("(prefers-color-scheme: dark)").matches;
found.smallestContrast = smallest;
found.numCharts = all("figure.chart").length;
parent.postMessage({ name: window.name, found }, "*");
