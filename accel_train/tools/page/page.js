"use strict";
// Reads values off a chart under the pointer or the arrow keys, and hides lines whose box in the legend is not ticked.
for (const plot of document.querySelectorAll(".plot[data-lines]")) {
  const figure = plot.closest("figure");
  const data = JSON.parse(plot.dataset.lines);
  const cursor = figure.querySelector(".cursor");
  const reading = figure.querySelector(".reading");
  const hidden = new Set();
  let place = 1;

  const [low, high, isLog] = data.axis;
  const scaled = isLog ? Math.log10 : (x) => x;
  const placeOf = (x) => (scaled(x) - scaled(low)) / (scaled(high) - scaled(low));
  const nearest = (xs) => {
    let first = 0, last = xs.length - 1;
    while (last - first > 1) {
      const middle = (first + last) >> 1;
      if (placeOf(xs[middle]) < place) first = middle; else last = middle;
    }
    return place - placeOf(xs[first]) < placeOf(xs[last]) - place ? first : last;
  };
  const shown = () => data.lines.filter((line) => line.xs.length && !hidden.has(line.name));
  const show = () => {
    const lines = shown();
    if (!lines.length) { reading.textContent = ""; cursor.style.display = "none"; return; }
    const x = lines[0].xs[nearest(lines[0].xs)];
    cursor.style.display = "block";
    cursor.style.left = `${100 * placeOf(x)}%`;
    const values = lines.map((line) => `${line.name} ${line.texts[nearest(line.xs)]}`);
    reading.textContent = `${data.x} ${x.toLocaleString("en")}: ${values.join(" · ")}`;
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    place = (event.clientX - box.left) / box.width;
    show();
  });
  plot.addEventListener("keydown", (event) => {
    const lines = shown();
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -0.1, PageDown: 0.1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || !lines.length) return;
    event.preventDefault();
    // The arrows go from point to point of the first line, the page keys by a tenth of the plot.
    const xs = lines[0].xs;
    if (Math.abs(step) === 1) place = placeOf(xs[Math.min(xs.length - 1, Math.max(0, nearest(xs) + step))]);
    else place = Math.min(1, Math.max(0, place + step));
    show();
  });
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(); });
  for (const box of figure.querySelectorAll("[data-shows]")) {
    box.addEventListener("change", () => {
      const name = box.dataset.shows;
      if (box.checked) hidden.delete(name); else hidden.add(name);
      for (const group of figure.querySelectorAll("[data-line]")) {
        if (group.dataset.line === name) group.style.display = box.checked ? "" : "none";
      }
    });
  }
}
