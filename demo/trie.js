// The labels' probabilities from the trie of their answers' tokens: vlm/evaluation/posterior.py says what is computed,
// and vlm/evaluation/prior.py how the label prior is corrected.

const NEGLIGIBLE = 1e-6;

/**
 * The trie of token sequences, none of which is a prefix of another, without its only children: a node is
 * {path, labels, children}, the tokens that lead to it, the indices of the sequences below it, and Map(token -> node),
 * empty for a leaf.
 */
export function trie(sequences, labels = sequences.map((_, i) => i), depth = 0) {
  if (labels.length > 1) {
    while (labels.every((label) => sequences[label][depth] === sequences[labels[0]][depth])) depth++;
  }
  const path = sequences[labels[0]].slice(0, depth);
  const children = new Map();
  if (labels.length > 1) {
    const groups = Map.groupBy(labels, (label) => sequences[label][depth]);
    for (const [token, below] of groups) children.set(token, trie(sequences, below, depth + 1));
  }
  return { path, labels, children };
}

/**
 * The probability of each of `count` labels: the product of the probabilities along its path. `ask(node)` resolves to
 * Map(token -> probability) over a node's children. A node that is reached with a probability below 1e-6, or below what
 * `offsets` could raise to that, is not asked: the labels below it share its probability equally. With `offsets`, one a
 * label, the probabilities become proportional to themselves times exp(offset).
 */
export async function posterior(root, count, ask, offsets = []) {
  const smallest = Math.min(...offsets);
  const gain = (labels) => (offsets.length ? Math.exp(Math.max(...labels.map((label) => offsets[label])) - smallest) : 1);
  const probabilities = new Array(count).fill(0);
  const open = [[root, 1]];
  while (open.length) {
    const [node, reached] = open.pop();
    if (node.labels.length === 1 || reached * gain(node.labels) < NEGLIGIBLE) {
      for (const label of node.labels) probabilities[label] = reached / node.labels.length;
      continue;
    }
    const next = await ask(node);
    for (const [token, child] of node.children) open.push([child, reached * (next.get(token) ?? 0)]);
  }
  return offsets.length ? corrected(probabilities, offsets) : probabilities;
}

function corrected(probabilities, offsets) {
  const largest = Math.max(...offsets);
  const weights = probabilities.map((probability, label) => probability * Math.exp(offsets[label] - largest));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}
