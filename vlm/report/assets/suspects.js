"use strict";
// The list of suspicious samples, and the decisions that one makes about them.

const STEP = 100;
const suspects = { kind: "", drawn: 0, decisions: new Map() }; // decisions: id -> {what, to (only of relabel), reason}
// Where the browser keeps the decisions, so that they survive a reload. All pages that are opened from disk share this
// storage: the key is that of the findings, so that another report does not show them.
const STORED_UNDER = `vlm report, decisions ${data.suspects?.key}`;

const HOW_TO_PASTE =
  "# These lines extend the file. If it has one of the keys already, put the lines of that key below it:\n" +
  "# a key may stand only once.\n";

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
      row.decided ? element("p", {}, element("b", {}, "Already"), ` ${row.decided}`) : choices(row)
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
  const decide = what => {
    if (what === null || (what === "relabel" && !to.value)) suspects.decisions.delete(row.id);
    else if (what === "relabel") suspects.decisions.set(row.id, { what, to: to.value, reason: row.reason });
    else if (what === "keep") suspects.decisions.set(row.id, { what, reason: `Looked at, and right. ${row.reason}` });
    else suspects.decisions.set(row.id, { what, reason: row.reason });
    showDecisions();
    storeDecisions();
  };
  const box = what =>
    element("input", {
      type: "checkbox",
      value: what,
      checked: what === suspects.decisions.get(row.id)?.what,
      onchange: event => decide(event.target.checked ? what : null)
    });
  to.addEventListener("change", () => decide("relabel"));
  return element(
    "div",
    { class: "choices", "data-id": row.id },
    element("label", {}, box("keep"), " keep"),
    element("label", {}, box("exclude"), " exclude"),
    element("label", {}, box("relabel"), " relabel to"),
    to
  );
}

// Reads what storeDecisions has written; browsers can refuse to store anything.
function storedDecisions() {
  try {
    return new Map(JSON.parse(localStorage.getItem(STORED_UNDER)));
  } catch {
    return new Map();
  }
}

function storeDecisions() {
  try {
    if (suspects.decisions.size) localStorage.setItem(STORED_UNDER, JSON.stringify([...suspects.decisions]));
    else localStorage.removeItem(STORED_UNDER);
  } catch {
    byId("copied").textContent = "The browser stores nothing for this page: copy the decisions before you leave it.";
  }
}

// The decisions in the form that a file in configs/decisions/ has. JSON's texts are YAML's, too, whatever is in them.
function decisionsYaml() {
  const quoted = JSON.stringify;
  const lines = { exclude: [], relabel: [], keep: [] };
  for (const [id, { what, to, reason }] of suspects.decisions) {
    const value = what === "relabel" ? `{to: ${quoted(to)}, reason: ${quoted(reason)}}` : quoted(reason);
    lines[what].push(`  ${quoted(id)}: ${value}`);
  }
  const blocks = Object.entries(lines)
    .filter(([, found]) => found.length)
    .map(([key, found]) => `${key}:\n${found.join("\n")}\n`);
  return blocks.length ? HOW_TO_PASTE + blocks.join("") : "";
}

function showDecisions() {
  const n = suspects.decisions.size;
  for (const group of document.querySelectorAll(".choices")) {
    // a sample can be suspicious for several reasons
    const decision = suspects.decisions.get(group.dataset.id);
    for (const box of group.querySelectorAll("input")) box.checked = box.value === decision?.what;
    if (decision?.what === "relabel") group.querySelector("select").value = decision.to;
  }
  byId("yaml").textContent = decisionsYaml();
  byId("copy").textContent = n ? `Copy ${count(n, "decision")}` : "Copy decisions";
  byId("copy").disabled = byId("untick").disabled = !n;
  byId("copied").textContent = "";
}

function showStored() {
  suspects.decisions = storedDecisions();
  showDecisions();
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
  byId("untick").addEventListener("click", () => {
    suspects.decisions.clear();
    showDecisions();
    storeDecisions();
  });
  byId("list-more").addEventListener("click", drawMoreSuspects);
  // Another tab can show the same report.
  addEventListener("storage", event => {
    if (event.key === STORED_UNDER) showStored();
  });
  showStored();
  drawSuspects();
}
