// Opened from disk, a page may not read the others: the search then lists its hits without their surroundings.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// Paper is light, whatever the screen shows.
const page = document.documentElement;
let onScreen;
addEventListener("beforeprint", () => { onScreen = page.dataset.theme; page.dataset.theme = "light"; });
addEventListener("afterprint", () => { page.dataset.theme = onScreen; });

addEventListener("DOMContentLoaded", () => {
  // The theme's buttons that open sidebar and contents listen in its own header alone, which this book does not show.
  for (const name of [".primary-toggle", ".secondary-toggle"]) {
    const [first, ...rest] = document.querySelectorAll(name);
    rest.forEach(button => button.addEventListener("click", () => first.click()));
  }

  // No line begins with what stands behind a formula: comma, stop, bracket.
  document.querySelectorAll("span.math").forEach(formula => {
    const next = formula.nextSibling, mark = next?.nodeType === Node.TEXT_NODE && next.data.match(/^[,.;:!?)\]\u2019\u201d]+/);
    if (!mark) return;
    next.splitText(mark[0].length);
    const whole = document.createElement("span");
    whole.style.whiteSpace = "nowrap";
    formula.replaceWith(whole);
    whole.append(formula, next);
  });
});

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

// The findings that are chosen by lists and words.
addEventListener("DOMContentLoaded", () => document.querySelectorAll(".findings").forEach(root => {
  const rows = [...root.querySelectorAll("tbody tr")].map(row => [row, JSON.parse(row.dataset.values)]);
  const lists = [...root.querySelectorAll("select")], words = root.querySelector("input"), count = root.querySelector("output");
  const show = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    let n = 0;
    rows.forEach(([row, values]) => {
      const text = values.join(" ").toLowerCase();
      row.hidden = !lists.every(list => !list.value || String(values[list.dataset.column]) === list.value) || !wanted.every(word => text.includes(word));
      n += !row.hidden;
    });
    count.textContent = `${n} of ${rows.length}`;
  };
  root.dataset.ready = "";
  root.addEventListener("input", show);
  show();
}));

// A word of the glossary opens its definition where it stands.
addEventListener("DOMContentLoaded", () => document.querySelectorAll("a:has(> .word)").forEach(word => {
  const definition = word.nextElementSibling;
  if (!definition?.matches(".definition")) return;
  word.setAttribute("role", "button");
  word.setAttribute("aria-expanded", "false");
  word.addEventListener("click", event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    word.setAttribute("aria-expanded", definition.classList.toggle("open"));
  });
}));
