"use strict";
// The table of labels, sorted by the column that was clicked last.

const CLASS_COLUMNS = [
  ["label", "Label"],
  ["samples", "Samples"],
  ["right", "Right"],
  ["recall", "Recall"],
  ["precision", "Precision"],
  ["f1", "F1"],
  ["confusion", "Most often taken for"]
];
const classes = { of: null, rows: [], by: "recall", descending: false };

function classRows(model) {
  const rows = data.labels.map((label, place) => ({
    label,
    place,
    samples: 0,
    right: 0,
    answered: 0,
    wrong: new Map()
  }));
  data.truth.forEach((truth, i) => {
    const answer = model.predicted[i];
    const row = rows[truth];
    row.samples += 1;
    if (answer >= 0) rows[answer].answered += 1;
    if (answer === truth) row.right += 1;
    else row.wrong.set(answer, (row.wrong.get(answer) ?? 0) + 1);
  });
  const ratio = (a, b) => (b ? a / b : 0);
  return rows
    .filter(row => row.samples)
    .map(row => {
      const recall = row.right / row.samples;
      const precision = ratio(row.right, row.answered);
      const [taken, times] = [...row.wrong].sort((a, b) => b[1] - a[1])[0] ?? [null, 0];
      return {
        ...row,
        recall,
        precision,
        f1: ratio(2 * recall * precision, recall + precision),
        taken,
        confusion: times
      };
    });
}

function drawClasses() {
  if (classes.of !== state.model) Object.assign(classes, { of: state.model, rows: classRows(shownModel()) });
  const { by, descending } = classes;
  const sign = descending ? -1 : 1;
  const compare = by === "label" ? (a, b) => a.label.localeCompare(b.label) : (a, b) => a[by] - b[by];
  const rows = [...classes.rows].sort((a, b) => sign * compare(a, b) || a.place - b.place);
  byId("classes").replaceChildren(
    element("thead", {}, element("tr", {}, ...CLASS_COLUMNS.map(head))),
    element("tbody", {}, ...rows.map(classRow))
  );
}

function head([key, text]) {
  const sorted = classes.by === key;
  return element(
    "th",
    {
      class: ["label", "confusion"].includes(key) ? "" : "number",
      "aria-sort": sorted ? (classes.descending ? "descending" : "ascending") : null
    },
    element("button", { type: "button", "data-sort": key }, text, sorted ? (classes.descending ? " ▼" : " ▲") : "")
  );
}

function classRow(row) {
  const number = text => element("td", { class: "number" }, text);
  const link = (text, truth, answer) => element("a", { href: cellAddress(truth, answer) }, text);
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, link(row.label, row.place)),
    number(row.samples.toLocaleString("en")),
    number(row.right.toLocaleString("en")),
    element("td", { class: "number share", style: `--share: ${row.recall}` }, percent(row.recall)),
    number(percent(row.precision)),
    number(row.f1.toFixed(3)),
    element("td", {}, row.taken === null ? "" : link(`${labelOf(row.taken)} (${row.confusion})`, row.place, row.taken))
  );
}

function cellAddress(truth, answer) {
  const chosen = answer === undefined ? {} : answer < 0 ? { answer: "none" } : { predicted: labelOf(answer) };
  return address({
    ...Object.fromEntries(FILTERS.map(key => [key, ""])),
    view: "gallery",
    sample: "",
    true: labelOf(truth),
    ...chosen
  });
}

function prepareClasses() {
  byId("classes").addEventListener("click", event => {
    const key = event.target.closest("[data-sort]")?.dataset.sort;
    if (!key) return;
    Object.assign(classes, { by: key, descending: classes.by === key ? !classes.descending : false });
    drawClasses();
    byId("classes").querySelector(`[data-sort="${key}"]`).focus();
  });
}
