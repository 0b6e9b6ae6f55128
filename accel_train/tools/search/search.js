// Comfort alone: the page works without it. An image is taken as soon as it is chosen, dropped or pasted.
"use strict";
const image = document.querySelector("#by-image");
const file = image.querySelector("input");
const text = document.querySelector("#by-text input");

function take(files) {
  if (!files.length) return;
  file.files = files;
  image.requestSubmit();
}

file.addEventListener("change", () => take(file.files));
document.addEventListener("paste", (event) => take(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files);
});
for (const form of document.forms) form.addEventListener("submit", () => document.body.classList.add("busy"));
for (const choice of document.querySelectorAll("#by-text select")) {
  choice.addEventListener("change", () => {
    // The same query again with the other choice, whatever it was.
    const address = new URL(location.href);
    if (!["q", "like", "upload"].some((name) => address.searchParams.get(name))) return;
    address.searchParams.set(choice.name, choice.value);
    location.assign(address);
  });
}
window.addEventListener("pageshow", () => document.body.classList.remove("busy"));
document.addEventListener("keydown", (event) => {
  const items = [...document.querySelectorAll(".like")];
  const at = items.indexOf(document.activeElement);
  if (event.key === "/" && document.activeElement !== text && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    text.select();
  } else if (at >= 0 && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
    event.preventDefault();
    items[Math.min(Math.max(at + (event.key === "ArrowRight" ? 1 : -1), 0), items.length - 1)].focus();
  }
});
