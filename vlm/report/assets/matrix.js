"use strict";
// The confusion matrix of the chosen model. It has the labels that occur, and a last column for answers that are none.

const matrix = { of: null, rows: [], columns: [], counts: new Map(), totals: new Map(), size: 0, row: -1, column: -1 };

function countAnswers(model) {
  const counts = new Map();
  const totals = new Map(); // "truth,answer" -> samples; truth -> samples
  data.truth.forEach((truth, i) => {
    const key = `${truth},${model.predicted[i]}`;
    counts.set(key, (counts.get(key) ?? 0) + 1);
    totals.set(truth, (totals.get(truth) ?? 0) + 1);
  });
  return { counts, totals };
}

const samplesAt = (truth, answer) => matrix.counts.get(`${truth},${answer}`) ?? 0;

function drawMatrix() {
  if (matrix.of === state.model) return;
  const model = shownModel();
  const { counts, totals } = countAnswers(model);
  const occurring = new Set([...data.truth, ...model.predicted]);
  const rows = model.order.filter(label => occurring.has(label));
  const columns = occurring.has(-1) ? [...rows, -1] : rows;
  const size = rows.length <= 16 ? 30 : rows.length <= 26 ? 24 : rows.length <= 40 ? 20 : rows.length <= 70 ? 16 : 12;
  Object.assign(matrix, { of: state.model, rows, columns, counts, totals, size, row: -1, column: -1 });

  const cells = svg("svg", {
    class: "cells",
    width: columns.length * size,
    height: rows.length * size,
    "aria-hidden": "true"
  });
  cells.append(
    svg("rect", { class: "band row", width: columns.length * size, height: size, x: 0, y: -size }),
    svg("rect", { class: "band column", width: size, height: rows.length * size, x: -size, y: 0 })
  );
  rows.forEach((truth, y) =>
    columns.forEach((answer, x) => {
      const n = samplesAt(truth, answer);
      if (n || x === y) cells.append(...cell(x, y, n, n / totals.get(truth) || 0));
    })
  );
  cells.append(svg("rect", { class: "cursor", width: size, height: size, x: -2 * size, y: -2 * size }));
  const name = label => element("span", { title: labelOf(label) }, labelOf(label));
  const box = byId("matrix");
  box.style.setProperty("--cell", `${size}px`);
  byId("beside").classList.toggle("stacked", rows.length > 40);
  box.replaceChildren(
    element("div", { class: "corner", "aria-hidden": "true" }),
    element("div", { class: "column-labels", "aria-hidden": "true" }, ...columns.map(name)),
    element("div", { class: "row-labels", "aria-hidden": "true" }, ...rows.map(name)),
    cells
  );
  byId("readout").textContent = "";
  drawPairs(model);
}

function cell(x, y, n, share) {
  const { size } = matrix;
  const kind = x === y ? "hit" : "miss";
  // The square root keeps single confusions visible; 0.85 leaves the count readable.
  const opacity = n ? 0.12 + 0.73 * (kind === "hit" ? share : Math.sqrt(share)) : 0;
  const parts = [
    svg("rect", {
      class: kind,
      x: x * size + 0.5,
      y: y * size + 0.5,
      width: size - 1,
      height: size - 1,
      "fill-opacity": opacity.toFixed(3)
    })
  ];
  if (n && size >= 16) {
    parts.push(
      svg("text", { x: (x + 0.5) * size, y: (y + 0.5) * size, class: opacity > 0.5 ? "strong" : "" }, String(n))
    );
  }
  return parts;
}

// Moves the cursor to a cell, and says what is in it.
function pointAt(row, column, event) {
  const { rows, columns, size, totals } = matrix;
  const inside = row >= 0 && column >= 0 && row < rows.length && column < columns.length;
  if (matrix.row === row && matrix.column === column && !event) return;
  Object.assign(matrix, inside ? { row, column } : { row: -1, column: -1 });
  const box = byId("matrix");
  const at = (name, values) => {
    for (const [key, value] of Object.entries(values)) box.querySelector(name).setAttribute(key, value);
  };
  const [x, y] = inside ? [column * size, row * size] : [-2 * size, -2 * size]; // out of sight
  at(".band.row", { y });
  at(".band.column", { x });
  at(".cursor", { x, y });
  for (const label of box.querySelectorAll("span.on")) label.classList.remove("on");
  const tip = byId("tip");
  tip.hidden = !(inside && event);
  if (!inside) return;
  box.querySelector(".row-labels").children[row].classList.add("on");
  box.querySelector(".column-labels").children[column].classList.add("on");
  const text = cellText(rows[row], columns[column], totals.get(rows[row]) ?? 0);
  byId("readout").textContent = text;
  tip.textContent = text;
  if (event) {
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${event.clientY + 18}px`;
  }
}

function cellText(truth, answer, total) {
  const n = samplesAt(truth, answer);
  const share = total ? `, ${n} of ${total} (${percent(n / total, 0)})` : "";
  if (truth === answer) return `${labelOf(truth)}, answered right${share}`;
  return answer < 0
    ? `${labelOf(truth)}, answer is no label${share}`
    : `${labelOf(truth)}, answered ${labelOf(answer)}${share}`;
}

function showCell(truth, answer) {
  go({
    ...Object.fromEntries(FILTERS.map(key => [key, ""])),
    view: "gallery",
    true: labelOf(truth),
    predicted: answer < 0 ? "" : labelOf(answer),
    answer: answer < 0 ? "none" : ""
  });
}

// The pairs of labels that are confused most often, which can be reached without the matrix.
function drawPairs(model) {
  const pairs = [...matrix.counts].map(([key, n]) => [...key.split(",").map(Number), n]);
  const wrong = pairs.filter(([truth, answer]) => truth !== answer && answer >= 0);
  wrong.sort((a, b) => b[2] - a[2] || a[0] - b[0] || a[1] - b[1]);
  byId("pairs").replaceChildren(
    ...wrong
      .slice(0, 15)
      .map(([truth, answer, n]) =>
        element(
          "li",
          {},
          element(
            "button",
            { type: "button", onclick: () => showCell(truth, answer), style: `--share: ${n / wrong[0][2]}` },
            element("span", { class: "name" }, labelOf(truth), " → ", labelOf(answer)),
            element("span", { class: "value" }, String(n))
          )
        )
      )
  );
  if (!wrong.length) byId("pairs").append(element("li", { class: "note" }, "No answer is a wrong label."));
}

function prepareMatrix() {
  const box = byId("matrix");
  const under = event => {
    const area = box.querySelector(".cells").getBoundingClientRect();
    return [event.clientY - area.top, event.clientX - area.left].map(offset => Math.floor(offset / matrix.size));
  };
  box.addEventListener("pointermove", event =>
    pointAt(...(event.target.closest(".cells") ? under(event) : [-1, -1]), event)
  );
  box.addEventListener("pointerleave", () => pointAt(-1, -1));
  box.addEventListener("click", event => {
    if (!event.target.closest(".cells")) return;
    const [row, column] = under(event);
    byId("tip").hidden = true;
    showCell(matrix.rows[row], matrix.columns[column]);
  });
  box.addEventListener("keydown", event => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) {
      event.preventDefault();
      const clamped = (value, most) => Math.max(0, Math.min(most - 1, value));
      const start = matrix.row < 0 ? [0, 0] : [matrix.row + step[0], matrix.column + step[1]];
      pointAt(clamped(start[0], matrix.rows.length), clamped(start[1], matrix.columns.length));
      box.querySelector(".cursor").scrollIntoView({ block: "nearest", inline: "nearest" });
    } else if (event.key === "Enter" && matrix.row >= 0) {
      showCell(matrix.rows[matrix.row], matrix.columns[matrix.column]);
    }
  });
}
