"use strict";
// The list of suspicious samples, and the decisions that one makes about them.

const STEP = 100;
const suspects = { kind: "", drawn: 0, decisions: new Map() }; // decisions: id -> {to (null: exclude), reason}

const chosenSuspects = () => data.suspects.rows.filter(row => !suspects.kind || row.kind === suspects.kind);

function drawSuspects() {
  byId("list").replaceChildren();
  suspects.drawn = 0;
  drawMoreSuspects();
}

function drawMoreSuspects() {
  const rows = chosenSuspects();
  byId("list").append(...rows.slice(suspects.drawn, suspects.drawn + STEP).map(suspectItem));
  suspects.drawn = Math.min(suspects.drawn + STEP, rows.length);
  byId("list-more").hidden = suspects.drawn >= rows.length;
}

function suspectItem(row) {
  return element(
    "li",
    { value: row.rank },
    element(
      "div",
      { class: "pictures" },
      pictureOf(row.split, row.id, row.picture),
      row.other_picture ? pictureOf(row.other_split, otherId(row), row.other_picture) : null
    ),
    element(
      "div",
      { class: "about" },
      element(
        "p",
        {},
        element("b", { class: "kind" }, row.kind.replaceAll("_", " ")),
        `, rank ${row.rank}, score ${row.score.toFixed(3)}`
      ),
      element("p", {}, row.reason),
      element(
        "p",
        { class: "id" },
        `${row.split}: ${row.id}, labelled ${row.label}`,
        row.other ? `; like ${row.other_split}: ${otherId(row)}` : ""
      ),
      choices(row)
    )
  );
}

const otherId = row => row.other.slice(row.other_split.length + 1);

// A test sample opens with all answers, another one as its picture.
function pictureOf(split, id, picture) {
  const image = element("img", { src: thumbnail(picture), alt: `${split}: ${id}`, loading: "lazy", decoding: "async" });
  if (split === "test") return element("button", { type: "button", class: "plain", "data-sample": id }, image);
  return element("a", { href: `pictures/${picture}`, target: "_blank", rel: "noopener" }, image);
}

function choices(row) {
  const to = element(
    "select",
    { "aria-label": `New label of ${row.id}` },
    row.suggestion ? null : option("", "choose a label"),
    ...data.labels.filter(label => label !== row.label).map(label => option(label, label))
  );
  to.value = suspects.decisions.get(row.id)?.to ?? row.suggestion;
  const box = what =>
    element("input", {
      type: "checkbox",
      checked: what === decisionAbout(row.id),
      onchange: event => decide(event.target.checked ? what : null)
    });
  const decide = what => {
    if (what === null || (what === "relabel" && !to.value)) suspects.decisions.delete(row.id);
    else suspects.decisions.set(row.id, { to: what === "relabel" ? to.value : null, reason: row.reason });
    showDecisions();
  };
  to.addEventListener("change", () => decide("relabel"));
  return element(
    "div",
    { class: "choices", "data-id": row.id },
    element("label", {}, box("exclude"), " exclude"),
    element("label", {}, box("relabel"), " relabel to"),
    to
  );
}

function decisionAbout(id) {
  const decided = suspects.decisions.get(id);
  return decided === undefined ? null : decided.to === null ? "exclude" : "relabel";
}

// The decisions in the form that a file in configs/decisions/ has. JSON's texts are YAML's, too, whatever is in them.
function decisionsYaml() {
  const quoted = JSON.stringify;
  const lines = { exclude: [], relabel: [] };
  for (const [id, { to, reason }] of suspects.decisions) {
    if (to === null) lines.exclude.push(`  ${quoted(id)}: ${quoted(reason)}`);
    else lines.relabel.push(`  ${quoted(id)}: {to: ${quoted(to)}, reason: ${quoted(reason)}}`);
  }
  return Object.entries(lines)
    .filter(([, found]) => found.length)
    .map(([key, found]) => `${key}:\n${found.join("\n")}\n`)
    .join("");
}

function showDecisions() {
  const n = suspects.decisions.size;
  for (const group of document.querySelectorAll(".choices")) {
    // a sample can be suspicious for several reasons
    const decision = decisionAbout(group.dataset.id);
    const [exclude, relabel] = group.querySelectorAll("input");
    exclude.checked = decision === "exclude";
    relabel.checked = decision === "relabel";
    if (relabel.checked) group.querySelector("select").value = suspects.decisions.get(group.dataset.id).to;
  }
  byId("yaml").textContent = decisionsYaml();
  byId("copy").textContent = n ? `Copy ${count(n, "decision")}` : "Copy decisions";
  byId("copy").disabled = !n;
  byId("copied").textContent = "";
}

async function copyDecisions() {
  try {
    await navigator.clipboard.writeText(decisionsYaml());
    byId("copied").textContent = "Copied as YAML.";
  } catch {
    byId("yaml").parentElement.open = true;
    getSelection().selectAllChildren(byId("yaml"));
    byId("copied").textContent = "The browser does not allow it; the YAML is selected below.";
  }
}

function prepareSuspects() {
  if (!data.suspects) return;
  const kinds = [...new Set(data.suspects.rows.map(row => row.kind))];
  byId("kind").append(option("", "all"), ...kinds.map(kind => option(kind, kind.replaceAll("_", " "))));
  byId("kind").addEventListener("change", event => {
    suspects.kind = event.target.value;
    drawSuspects();
  });
  byId("copy").addEventListener("click", copyDecisions);
  byId("list-more").addEventListener("click", drawMoreSuspects);
  showDecisions();
  drawSuspects();
}
