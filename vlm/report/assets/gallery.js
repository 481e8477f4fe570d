"use strict";
// The gallery: a tile per sample, drawn in chunks as they come into view.

const CHUNK = 60;
const gallery = { samples: [], drawn: 0, of: null };

function tile(i, model) {
  const right = isRight(model, i);
  const truth = labelOf(data.truth[i]);
  const answer = labelOf(model.predicted[i]);
  const picture = element("img", {
    src: thumbnail(data.pictures[i]),
    alt: "",
    loading: "lazy",
    decoding: "async",
    width: 200,
    height: 150
  });
  const said = [
    element("span", { class: "answer" }, right ? "✓ " : "✗ ", answer),
    right ? null : element("span", { class: "truth" }, "is ", truth)
  ];
  const button = element(
    "button",
    {
      type: "button",
      class: "tile",
      "data-sample": data.ids[i],
      "aria-label": `${data.ids[i]}: ${truth}, answered ${answer}${right ? "" : ", wrong"}`
    },
    picture,
    element("span", { class: "words" }, ...said),
    model.top ? bars(model.top[i], data.truth[i], 3) : null,
    model.texts?.[i] != null ? element("span", { class: "text" }, model.texts[i]) : null,
    isSuspect(i) ? element("span", { class: "flag" }, "suspect") : null
  );
  return element("li", { class: right ? "right" : "wrong" }, button);
}

// The most probable labels and their probabilities; `top` alternates the two.
function bars(top, truth, most) {
  const box = element("span", { class: "bars" });
  for (let k = 0; k < Math.min(2 * most, top.length); k += 2) {
    box.append(
      element(
        "span",
        { class: top[k] === truth ? "true" : "", style: `--share: ${top[k + 1]}` },
        element("span", { class: "name" }, labelOf(top[k])),
        element("span", { class: "value" }, percent(top[k + 1], top[k + 1] > 0.0995 ? 0 : 1))
      )
    );
  }
  return box;
}

function drawMore() {
  const model = shownModel();
  const next = gallery.samples.slice(gallery.drawn, gallery.drawn + CHUNK);
  byId("tiles").append(...next.map(i => tile(i, model)));
  gallery.drawn += next.length;
  // The observer reports changes only: watching anew makes it report again if the end is still in view.
  watcher.unobserve(byId("more"));
  if (gallery.drawn < gallery.samples.length) watcher.observe(byId("more"));
}

const watcher = new IntersectionObserver(
  entries => {
    if (entries.some(entry => entry.isIntersecting)) drawMore();
  },
  { rootMargin: "1500px" }
);

function drawGallery() {
  const model = shownModel();
  const of = JSON.stringify([state.model, state.sort, ...FILTERS.map(key => state[key])]);
  if (gallery.of === of) return;
  Object.assign(gallery, { of, samples: select(state, model), drawn: 0 });
  byId("tiles").replaceChildren();
  drawMore();
  byId("status").textContent = statusText(model);
  showFilters(model);
}

function statusText(model) {
  const n = gallery.samples.length;
  const right = gallery.samples.filter(i => isRight(model, i)).length;
  if (n === 0) return "No sample passes all filters.";
  const shown = `${n.toLocaleString("en")} of ${count(data.ids.length, "sample")}`;
  return state.answer ? shown : `${shown}, ${right.toLocaleString("en")} right (${percent(right / n)})`;
}

function showFilters(model) {
  const form = byId("filters");
  for (const key of [...FILTERS, "sort"]) {
    if (form.elements[key] !== document.activeElement || form.elements[key].tagName === "SELECT")
      form.elements[key].value = state[key];
  }
  for (const label of form.querySelectorAll('[data-needs="confidence"]')) label.hidden = !model.confidence;
}

function prepareGallery() {
  const form = byId("filters");
  const labels = data.labels.map(label => option(label, label));
  form.elements.true.append(option("", "all"), ...labels);
  form.elements.predicted.append(option("", "all"), ...labels.map(label => label.cloneNode(true)));
  form.elements.change.append(
    option("", "all"),
    ...Object.entries(CHANGES).map(([value, [text]]) => option(value, text))
  );
  const open = [...suspectsOfTest.values()].flat().filter(row => !row.decided);
  const kinds = [...new Set(open.map(row => row.kind))];
  form.elements.suspect.append(
    option("", "all"),
    option("any", "suspects only"),
    ...kinds.map(kind => option(kind, kind.replaceAll("_", " ")))
  );
  form.querySelector('[data-needs="change"]').hidden = !Object.keys(CHANGES).length;
  form.querySelector('[data-needs="suspects"]').hidden = !kinds.length;
  form.addEventListener("input", () => {
    go(Object.fromEntries([...FILTERS, "sort"].map(key => [key, form.elements[key].value])), true);
  });
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => go(Object.fromEntries([...FILTERS, "sort"].map(key => [key, ""]))));
}
