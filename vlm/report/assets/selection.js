"use strict";
// Which samples the filters in the address choose, and in which order.

const suspectsOfTest = new Map(); // the test sample's id -> its rows in the list of suspects
for (const row of data.suspects?.rows ?? []) {
  if (row.split === "test") suspectsOfTest.set(row.id, [...(suspectsOfTest.get(row.id) ?? []), row]);
}

// Whether the audit suspects a test sample, of any kind or of one, and nobody has decided about it.
const isSuspect = (i, kind) =>
  suspectsOfTest.get(data.ids[i])?.some(row => !row.decided && (!kind || row.kind === kind)) ?? false;

const isRight = (answers, i) => answers.predicted[i] === data.truth[i];

// Whether the answer of the model at the other revision is right; the two have their own lists of labels.
const otherLabel = (other, i) => (other.predicted[i] < 0 ? NO_LABEL : data.against.labels[other.predicted[i]]);
const wasRight = (other, i) => otherLabel(other, i) === labelOf(data.truth[i]);
const isShared = (other, i) => other !== undefined && other.predicted[i] !== -2;

// The changes that one can filter by: value in the address -> [text, test of a sample]
const CHANGES = {};
if (data.tuning) {
  const [before, after] = [models.get(data.tuning.before), models.get(data.tuning.after)];
  CHANGES.fixed = ["fixed by fine-tuning", i => !isRight(before, i) && isRight(after, i)];
  CHANGES.broken = ["broken by fine-tuning", i => isRight(before, i) && !isRight(after, i)];
}
if (data.against) {
  const other = () => data.against.models[state.model];
  const name = data.against.revision;
  const since = test => i => isShared(other(), i) && test(i);
  CHANGES.fixed_since = [`fixed since ${name}`, since(i => !wasRight(other(), i) && isRight(shownModel(), i))];
  CHANGES.broken_since = [`broken since ${name}`, since(i => wasRight(other(), i) && !isRight(shownModel(), i))];
  CHANGES.other_since = [
    `other answer than ${name}`,
    since(i => otherLabel(other(), i) !== labelOf(shownModel().predicted[i]))
  ];
}

// The tests that a sample, given by its place in the test split, has to pass.
function testsOf(filters, model) {
  const tests = [];
  const truth = data.labels.indexOf(filters.true);
  const predicted = data.labels.indexOf(filters.predicted);
  if (filters.answer === "right") tests.push(i => isRight(model, i));
  if (filters.answer === "wrong") tests.push(i => !isRight(model, i));
  if (filters.answer === "none") tests.push(i => model.predicted[i] < 0);
  if (filters.true) tests.push(i => data.truth[i] === truth);
  if (filters.predicted) tests.push(i => model.predicted[i] === predicted && predicted >= 0);
  if (CHANGES[filters.change]) tests.push(CHANGES[filters.change][1]);
  if (filters.suspect) tests.push(i => isSuspect(i, filters.suspect === "any" ? null : filters.suspect));
  if (model.confidence && filters.from !== "") tests.push(i => 100 * model.confidence[i] >= Number(filters.from));
  if (model.confidence && filters.to !== "") tests.push(i => 100 * model.confidence[i] <= Number(filters.to));
  if (filters.find) {
    const wanted = filters.find.toLowerCase();
    tests.push(i => data.ids[i].toLowerCase().includes(wanted) || model.texts?.[i]?.toLowerCase().includes(wanted));
  }
  return tests;
}

// The places of the samples that pass all filters of `filters`, in the order that it asks for.
function select(filters, model) {
  const tests = testsOf(filters, model);
  const found = [];
  for (let i = 0; i < data.ids.length; i++) {
    if (tests.every(test => test(i))) found.push(i);
  }
  const { confidence, loss } = model;
  if (confidence && filters.sort === "confident") found.sort((a, b) => confidence[b] - confidence[a]);
  if (confidence && filters.sort === "unsure") found.sort((a, b) => confidence[a] - confidence[b]);
  if (loss && filters.sort === "loss") found.sort((a, b) => loss[b] - loss[a]);
  return found;
}
