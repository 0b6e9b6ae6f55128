"use strict";
// Reads values off a chart under the pointer or the arrow keys, and hides lines whose box in the legend is not ticked.
for (const figure of document.querySelectorAll("figure.chart")) {
  const plot = figure.querySelector(".plot");
  const lines = JSON.parse(plot.dataset.lines);
  const cursor = figure.querySelector(".cursor");
  const reading = figure.querySelector(".reading");
  const hidden = new Set();
  let place = 0.5;

  const nearest = (places) => {
    let low = 0, high = places.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (places[middle] < place) low = middle; else high = middle;
    }
    return place - places[low] < places[high] - place ? low : high;
  };
  const show = () => {
    const shown = lines.filter((line) => line.places.length && !hidden.has(line.name));
    if (!shown.length) { reading.textContent = ""; return; }
    const at = nearest(shown[0].places);
    cursor.style.display = "block";
    cursor.style.left = `${100 * shown[0].places[at]}%`;
    const values = shown.map((line) => `${line.name} ${line.texts[nearest(line.places)][1]}`);
    reading.textContent = `${shown[0].x} ${shown[0].texts[at][0]}: ${values.join(" · ")}`;
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    place = (event.clientX - box.left) / box.width;
    show();
  });
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -0.01, ArrowRight: 0.01, Home: -1, End: 1 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    place = Math.min(1, Math.max(0, place + move));
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
