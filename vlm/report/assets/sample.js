"use strict";
// One sample in full size, with the answers of all models. Arrow keys go to its neighbours in the gallery.

function drawSample() {
  const dialog = byId("sample");
  const i = state.sample === "" ? -1 : data.ids.indexOf(state.sample);
  if (i < 0) {
    if (dialog.open) dialog.close();
    return;
  }
  const focused = dialog.contains(document.activeElement) ? document.activeElement.dataset.button : "next";
  const picture = { src: `pictures/${data.pictures[i]}`, alt: `${data.ids[i]}, labelled ${labelOf(data.truth[i])}` };
  dialog.replaceChildren(
    element("figure", {}, element("img", picture)),
    element("div", { class: "facts" }, ...sampleFacts(i))
  );
  if (!dialog.open) dialog.showModal();
  // The new buttons take the focus of the old ones, so that the keyboard stays in the dialog.
  const same = dialog.querySelector(`[data-button="${focused}"]:not(:disabled)`);
  (same ?? dialog.querySelector('[data-button="close"]')).focus();
}

function sampleFacts(i) {
  const [before, after] = neighbours(i);
  const model = shownModel();
  const step = (to, name, text, label) =>
    element(
      "button",
      {
        type: "button",
        "data-button": name,
        disabled: to === undefined,
        "aria-label": label,
        onclick: () => openSample(to)
      },
      text
    );
  return [
    element(
      "div",
      { class: "buttons" },
      step(before, "previous", "←", "Previous sample"),
      step(after, "next", "→", "Next sample"),
      element("span", { class: "place" }, placeInGallery(i)),
      element(
        "button",
        { type: "button", "data-button": "close", "aria-label": "Close", onclick: () => byId("sample").close() },
        "✕"
      )
    ),
    element("h2", { id: "sample-title" }, labelOf(data.truth[i])),
    element("p", { class: "id" }, data.ids[i]),
    ...(suspectsOfTest.get(data.ids[i]) ?? []).map(row =>
      element("p", { class: row.decided ? "note" : "warning" }, row.reason, row.decided ? ` Already ${row.decided}` : "")
    ),
    answersTable(i),
    model.top ? element("h3", {}, model.title) : null,
    model.top ? bars(model.top[i], data.truth[i], 5) : null
  ];
}

function answersTable(i) {
  const others = data.against && Object.values(data.against.models).some(other => isShared(other, i));
  const head = ["Answers", "", ...(others ? [data.against.revision] : [])];
  const cell = (right, ...parts) =>
    element("td", { class: right ? "right" : "wrong" }, `${right ? "✓" : "✗"} `, ...parts);
  const rows = data.models.map(model => {
    const cells = [
      cell(
        isRight(model, i),
        labelOf(model.predicted[i]),
        model.confidence ? element("span", { class: "confidence" }, ` ${percent(model.confidence[i], 0)}`) : null,
        model.texts?.[i] != null ? element("q", { class: "text" }, model.texts[i]) : null
      )
    ];
    const other = data.against?.models[model.name];
    if (others) cells.push(isShared(other, i) ? cell(wasRight(other, i), otherLabel(other, i)) : element("td"));
    return element(
      "tr",
      { class: model.name === state.model ? "current" : "" },
      element("th", { scope: "row" }, model.title),
      ...cells
    );
  });
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...head.map(text => element("th", {}, text)))),
    element("tbody", {}, ...rows)
  );
}

// The samples before and after this one: among those that the gallery shows, or all if it is not one of them.
function neighbours(i) {
  const among = gallery.samples.includes(i) ? gallery.samples : data.ids.map((_, place) => place);
  const place = among.indexOf(i);
  return [among[place - 1], among[place + 1]];
}

function placeInGallery(i) {
  const place = gallery.samples.indexOf(i);
  return place < 0 ? "" : `${(place + 1).toLocaleString("en")} of ${gallery.samples.length.toLocaleString("en")}`;
}

// Opens a sample, or goes from one to the next. The history has one entry for it, which is marked, so that closing the
// sample can go back to the entry before.
function openSample(i) {
  if (i === undefined) return;
  const opened = state.sample === "" || history.state?.opened === true;
  go({ sample: data.ids[i] }, state.sample !== "");
  if (opened) history.replaceState({ opened }, "");
}

function prepareSample() {
  const dialog = byId("sample");
  dialog.addEventListener("close", () => {
    if (!state.sample) return;
    if (history.state?.opened) history.back();
    else go({ sample: "" }, true); // a link led here
  });
  dialog.addEventListener("click", event => {
    if (event.target === dialog) dialog.close();
  }); // beside the box
  dialog.addEventListener("keydown", event => {
    const side = { ArrowLeft: 0, ArrowRight: 1 }[event.key];
    if (side === undefined) return;
    event.preventDefault();
    openSample(neighbours(data.ids.indexOf(state.sample))[side]);
  });
  document.addEventListener("click", event => {
    const id = event.target.closest?.("[data-sample]")?.dataset.sample;
    if (id !== undefined) openSample(data.ids.indexOf(id));
  });
}
