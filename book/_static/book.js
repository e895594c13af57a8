// Opened from disk, a page may not read the others: the search then lists its hits without their surroundings.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// Paper is light, whatever the screen shows.
const page = document.documentElement;
let onScreen;
addEventListener("beforeprint", () => { onScreen = page.dataset.theme; page.dataset.theme = "light"; });
addEventListener("afterprint", () => { page.dataset.theme = onScreen; });

// A formula wider than the text is made smaller, to no less than two thirds. What is still too wide scrolls, and its edge says so.
addEventListener("DOMContentLoaded", () => {
  const mark = box => box.classList.toggle("more-to-come", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
  const fit = () => document.querySelectorAll("div.math mjx-container, .cell_output .output, .cell_output > figure, .pst-scrollable-table-container")
    .forEach(box => {
      if (box.matches("mjx-container")) {
        box.style.zoom = "";
        if (box.scrollWidth > box.clientWidth) box.style.zoom = Math.max(2 / 3, box.clientWidth / box.scrollWidth);
      }
      box.onscroll = () => mark(box);
      mark(box);
    });
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(document.querySelector("article") ?? document.body);
});
