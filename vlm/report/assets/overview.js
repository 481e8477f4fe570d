"use strict";
// The first view: accuracies, the most confident mistakes, and what the other stages have measured.

function drawOverview() {
  drawAccuracies();
  drawMistakes();
}

function drawAccuracies() {
  byId("accuracies").replaceChildren(
    ...data.models.map((model, number) => {
      const starts = number > 0 && data.models[number - 1].baseline && !model.baseline;
      const interval = `${(100 * model.low).toFixed(1)} to ${(100 * model.high).toFixed(1)}`;
      const lenient =
        model.lenient > model.accuracy ? `${percent(model.lenient)} with a label anywhere in the text` : null;
      return element(
        "button",
        {
          type: "button",
          class: `row ${model.baseline ? "baseline" : ""} ${starts ? "first" : ""}`,
          "aria-pressed": String(model.name === state.model),
          onclick: () => go({ model: model.name }, true),
          style: `--accuracy: ${model.accuracy}; --low: ${model.low}; --high: ${model.high}`
        },
        element("span", { class: "name" }, model.title, model.baseline ? element("small", {}, " baseline") : null),
        element("span", { class: "track" }, element("span", { class: "fill" }), element("span", { class: "whisker" })),
        element(
          "span",
          { class: "value" },
          element("b", {}, percent(model.accuracy)),
          " ",
          element("small", {}, interval)
        ),
        lenient ? element("small", { class: "lenient" }, lenient) : null
      );
    })
  );
}

function drawMistakes() {
  const model = shownModel();
  const sorted = select({ ...DEFAULTS, answer: "wrong", sort: "confident" }, model);
  byId("mistakes").replaceChildren(...sorted.slice(0, 8).map(i => tile(i, model)));
  const which = model.confidence ? "; the most confident ones are here" : "";
  byId("mistakes-note").textContent = sorted.length
    ? `${model.title}: ${count(sorted.length, "mistake")}${which}.`
    : `${model.title}: no mistake.`;
}

// The charts and tables that depend on no state.
function prepareOverview() {
  const box = byId("charts");
  const card = (...parts) => box.append(element("section", { class: "card" }, ...parts));
  const { training, robustness } = data;
  if (training) {
    const series = [{ name: "validation", points: training.eval_loss, dots: true }];
    if (training.train_loss.length) series.push({ name: "training", points: training.train_loss, pale: true });
    card(lineChart({ title: "Loss while fine-tuning", series, xLabel: "optimizer step", zero: true }));
    card(
      lineChart({
        title: "Accuracy on validation while fine-tuning",
        xLabel: "optimizer step",
        yText: value => percent(value, 0),
        note: noteOnPasses(training),
        series: [{ name: "accuracy", points: training.accuracy, dots: true }]
      })
    );
  }
  for (const [name, rows] of Object.entries(data.thresholds)) card(...thresholdTable(models.get(name).title, rows));
  if (robustness.length) byId("charts").after(robustnessCard(robustness));
  if (!box.children.length) box.remove();
}

// What the chart of the validation passes shows. One pass is a dot, which has no band.
function noteOnPasses({ accuracy, best }) {
  const [[step, value, low, high]] = accuracy;
  if (accuracy.length === 1) {
    const interval = `95 % interval ${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)}`;
    return `There was one validation pass, at step ${step}: ${percent(value)} (${interval}).`;
  }
  return `${best === null ? "" : `The adapter of step ${best} is the best. `}The band is the 95 % interval.`;
}

function thresholdTable(title, rows) {
  const both = (value, low, high) =>
    value == null ? "" : `${percent(value)} (${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)})`;
  return [
    element("h2", {}, `When to trust an answer: ${title}`),
    element(
      "p",
      { class: "note" },
      "Thresholds on the probability are chosen on validation for the target accuracy, and measured on test."
    ),
    element(
      "div",
      { class: "scroll" },
      element(
        "table",
        {},
        element(
          "thead",
          {},
          element("tr", {}, ...["Target", "Answer if p ≥", "Answered", "Right"].map(text => element("th", {}, text)))
        ),
        element(
          "tbody",
          {},
          ...rows.map(row =>
            element(
              "tr",
              {},
              element("th", { scope: "row" }, percent(row.target, 0)),
              ...(row.threshold == null
                ? [element("td", { colspan: 3 }, "no threshold reaches it on validation")]
                : [
                    String(row.threshold),
                    both(row.coverage, row.coverage_low, row.coverage_high),
                    both(row.accuracy, row.low, row.high)
                  ].map(text => element("td", {}, text)))
            )
          )
        )
      )
    )
  ];
}

function robustnessCard(rows) {
  const names = [...new Set(rows.map(row => row.model))];
  const corruptions = [...new Set(rows.map(row => row.corruption))];
  const severities = [...new Set(rows.map(row => row.severity))].sort((a, b) => a - b);
  const charts = corruptions.map(corruption =>
    lineChart({
      title: corruption.replaceAll("_", " "),
      small: true,
      zero: true,
      ticks: severities,
      yText: value => percent(value, 0),
      series: names.map(name => ({
        name,
        dots: true,
        points: rows
          .filter(row => row.model === name && row.corruption === corruption)
          .map(row => [row.severity, row.accuracy, row.low, row.high])
      }))
    })
  );
  return element(
    "section",
    { class: "card" },
    element("h2", {}, "Robustness"),
    element(
      "p",
      { class: "note" },
      "Accuracy against the severity of a corruption of the test pictures; 0 is without. The bands are 95 % intervals."
    ),
    legendOf(names.map(name => ({ name }))),
    element("div", { class: "multiples" }, ...charts)
  );
}
