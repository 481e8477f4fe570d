"use strict";
// Follows the address: whatever the page shows is a function of it.

const DRAW = {
  overview: drawOverview,
  gallery: drawGallery,
  confusions: () => {
    drawMatrix();
    drawClasses();
  },
  suspects: () => {}
};

let followed = null;

function follow() {
  if (location.hash === followed) return;
  followed = location.hash;
  const before = state;
  state = readState(before);
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== state.view;
  for (const link of document.querySelectorAll("nav a")) {
    link.href = address({ view: link.dataset.view, sample: "" });
    link.setAttribute("aria-current", link.dataset.view === state.view ? "page" : "false");
  }
  for (const link of document.querySelectorAll("a[data-go]"))
    link.href = address({ ...cleared(), ...JSON.parse(link.dataset.go) });
  byId("model").value = state.model;
  DRAW[state.view]();
  drawSample();
  if (before.view !== state.view) scrollTo(0, 0);
}

const cleared = () => Object.fromEntries([...FILTERS, "sort", "sample"].map(key => [key, ""]));

byId("model").append(...data.models.map(model => option(model.name, model.title)));
byId("model").addEventListener("change", event => go({ model: event.target.value }, true));
prepareOverview();
prepareGallery();
prepareMatrix();
prepareClasses();
prepareSample();
prepareSuspects();
addEventListener("hashchange", follow);
follow();
