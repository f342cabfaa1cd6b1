"use strict";

// A choice in a filter is applied at once; that of an annotator asks for every kind it makes.
for (const select of document.querySelectorAll("select[data-submits]")) {
  select.addEventListener("change", () => {
    if (select.dataset.clears) select.form.elements[select.dataset.clears].value = "";
    select.form.requestSubmit();
  });
}

// Empty fields stay out of the address, so that it is short enough to share.
for (const form of document.querySelectorAll("form[method=get]")) {
  form.addEventListener("submit", () => {
    for (const field of form.elements) field.disabled = field.name !== "" && field.value === "";
  });
}
addEventListener("pageshow", () => {
  for (const field of document.querySelectorAll("form[method=get] :disabled")) field.disabled = false;
});

// One picture of the item over another.
for (const over of document.querySelectorAll("[data-over]")) {
  const find = (name) => over.querySelector(`[${name}]`);
  const below = over.querySelector('[data-image="below"]');
  const above = over.querySelector('[data-image="above"]');
  const show = () => {
    below.src = find("data-below").value;
    below.alt = `${find("data-below").selectedOptions[0].text} of the item`;
    if (above === null) return;
    above.src = find("data-above").value;
    above.alt = `${find("data-above").selectedOptions[0].text} of the item, over it`;
    above.style.opacity = find("data-opacity").value / 100;
    above.style.mixBlendMode = find("data-screen").checked ? "screen" : "normal";
  };
  over.addEventListener("input", show);
}

// The edges of the node that the pointer or the focus is on.
for (const graph of document.querySelectorAll(".graph")) {
  const light = (event) => {
    const node = event.target.closest?.("[data-node]")?.dataset.node;
    for (const arrow of graph.querySelectorAll(".arrow")) {
      arrow.classList.toggle("lit", node !== undefined && [arrow.dataset.from, arrow.dataset.to].includes(node));
    }
  };
  for (const name of ["mouseover", "focusin", "focusout", "mouseleave"]) graph.addEventListener(name, light);
}

// Keys: / searches, arrows turn pages, g and a letter open a page.
let went = 0;
addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea, .scrolls, .graph");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const follow = (link) => link?.click();
  if (event.key === "/") {
    const search = document.getElementById("search");
    if (search !== null) { event.preventDefault(); search.focus(); }
  } else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    follow(document.querySelector(event.key === "ArrowRight" ? "a[rel=next]" : "a[rel=prev]"));
  } else if (event.timeStamp - went < 1500) {
    const links = document.querySelectorAll(".top nav a");
    went = 0;
    follow([...links].find((link) => link.textContent[0].toLowerCase() === event.key));
  } else if (event.key === "g") {
    went = event.timeStamp;
  }
});
