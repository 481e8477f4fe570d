// The page: pictures in, labels out. classifier.js does the work.

import { load } from "./classifier.js";
import { decoded } from "./pictures.js";

const EDGE = "edge"; // the folder with the exported files, models/edge, as it is served
const SHOWN = 5; // labels, until one asks for all
const $ = (id) => document.getElementById(id);

const classifier = load(EDGE, showProgress).then(showClassifier);
classifier.catch(showProblem);

function showProgress(done, total) {
  $("progress").value = done / total;
  say(`Loading the model, ${(total / 1e6).toFixed(1)} MB`);
}

/** Writes the status line, which screen readers read out; `spoken` texts are not shown. */
function say(text, { spoken = false } = {}) {
  if ($("status").textContent !== text) $("status").textContent = text; // the same text would be read out again
  $("status").classList.toggle("spoken", spoken);
}

function showClassifier(classifier) {
  const { task, labels, model, files } = classifier.description;
  document.title = task;
  document.querySelector("h1").textContent = task;
  const types = Object.values(files).map((file) => file.type).join(" and ");
  const threads = classifier.threads === 1 ? "1 thread" : `${classifier.threads} threads`;
  $("model").textContent = `${labels.length} labels, ${model.id} with weights in ${types}, ${threads}`;
  $("progress").hidden = true;
  say("Ready for a picture");
  return classifier;
}

function showProblem(error) {
  $("problem").textContent = error.message;
  $("problem").hidden = false;
  $("progress").hidden = true;
  say("");
}

// --- Answering: one picture at a time; of those that come in meanwhile only the last one is answered.
let next = null;
let busy = false;

async function classify(file) {
  next = file;
  if (busy) return;
  setBusy(true);
  while (next) {
    const file = next;
    next = null;
    await answer(file).catch(showProblem);
  }
  setBusy(false);
}

function setBusy(value) {
  busy = value;
  $("output").setAttribute("aria-busy", busy);
}

async function answer(file) {
  $("problem").hidden = true;
  const picture = await decoded(file);
  showPicture(file);
  $("answer").hidden = true;
  const loaded = await classifier;
  say("Looking at the picture …");
  await new Promise(requestAnimationFrame); // so that this is seen before resizing occupies the page
  const result = await loaded.classify(picture);
  showAnswer(loaded.description.labels, result);
}

function showPicture(file) {
  URL.revokeObjectURL($("picture").src);
  $("picture").src = URL.createObjectURL(file);
  $("picture").hidden = false;
  $("hint").hidden = true;
}

function showAnswer(labels, { probabilities, passes, milliseconds }) {
  const order = labels.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
  $("label").textContent = labels[order[0]];
  say(`${labels[order[0]]}, ${percent(probabilities[order[0]])}`, { spoken: true });
  $("labels").replaceChildren(...order.map((label) => row(labels[label], probabilities[label])));
  const times = passes === 1 ? "1 pass" : `${passes} passes`;
  $("time").textContent = `${milliseconds.toFixed(0)} ms, in ${times} through the model`;
  $("answer").hidden = false;
  fold();
}

function row(label, probability) {
  const item = document.createElement("li");
  item.dataset.label = label;
  item.dataset.probability = probability;
  const part = (name, text = "") => {
    const element = document.createElement("span");
    element.className = name;
    element.textContent = text;
    return element;
  };
  const track = part("track");
  track.append(part("fill"));
  track.firstChild.style.cssText = `display: block; width: ${100 * probability}%`;
  item.append(part("name", label), track, part("share", percent(probability)));
  return item;
}

function percent(probability) {
  return `${(100 * probability).toFixed(1)}\u00a0%`;
}

// --- The list of labels: the first few, or all
function fold() {
  const rows = [...$("labels").children];
  const open = $("all").getAttribute("aria-expanded") === "true";
  rows.forEach((row, i) => (row.hidden = !open && i >= SHOWN));
  $("all").hidden = rows.length <= SHOWN;
  $("all").textContent = open ? "Show fewer" : `Show all ${rows.length} labels`;
}

$("all").addEventListener("click", () => {
  $("all").setAttribute("aria-expanded", $("all").getAttribute("aria-expanded") !== "true");
  fold();
});

// --- Files: chosen, dropped, pasted
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  take($("file").files);
  $("file").value = ""; // so that the same file can be chosen again
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => take(event.clipboardData.files));

function take(files) {
  if (!files.length) return;
  stopCamera();
  classify(files[0]);
}

// --- The camera
$("camera").addEventListener("click", () => ($("video").srcObject ? stopCamera() : startCamera()));

async function startCamera() {
  try {
    const video = { facingMode: "environment" };
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video });
  } catch (error) {
    showProblem(new Error(`The camera cannot be used: ${error.message}.`));
    return;
  }
  $("problem").hidden = true;
  await $("video").play();
  showCamera(true);
  $("take").focus();
}

function stopCamera() {
  if (!$("video").srcObject) return;
  $("video").srcObject.getTracks().forEach((track) => track.stop());
  $("video").srcObject = null;
  showCamera(false);
}

function showCamera(on) {
  say(on ? "The camera is on" : "");
  $("video").hidden = $("take").hidden = !on;
  $("picture").hidden = on || !$("picture").src;
  $("hint").hidden = on || !!$("picture").src;
  $("answer").hidden = on || !$("labels").children.length;
  $("camera").textContent = on ? "Stop the camera" : "Use the camera";
}

$("take").addEventListener("click", async () => {
  const { videoWidth, videoHeight } = $("video");
  const canvas = new OffscreenCanvas(videoWidth, videoHeight);
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  const picture = await canvas.convertToBlob(); // PNG, without loss
  stopCamera();
  $("camera").focus();
  classify(picture);
});
