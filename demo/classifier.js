// The exported classifier in llama.cpp, compiled to WebAssembly (wllama), in a worker of this page.

import { detokenizer } from "./gguf.js";
import { bmp } from "./pictures.js";
import { resized, target } from "./resizing.js";
import { posterior, trie } from "./trie.js";

const VENDOR = "vendor/wllama/";
// Raises a node's children above all other tokens. Logits differ by less; more would cost precision: they are float32.
const BIAS = 100;
// Raises one token above those; float32's exponents still hold probabilities of e^-60 and less.
const FURTHER = 160;
// The page writes the prompt itself, control tokens included, so the chat template must add nothing.
const TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}";

/** Loads the files of the folder `edge`; calls progress(done, total), in bytes. Throws an Error with one line. */
export async function load(edge, progress) {
  const response = await get(`${edge}/classifier.json`);
  const description = await response.json();
  const names = Object.keys(description.files);
  const total = names.reduce((sum, name) => sum + description.files[name].bytes, 0);
  const files = [];
  for (const name of names) {
    const before = files.reduce((sum, file) => sum + file.size, 0);
    const blob = await download(`${edge}/${name}`, (done) => progress(before + done, total));
    if (blob.size !== description.files[name].bytes) {
      throw new Error(`${edge}/${name} is not the file that classifier.json describes; export both again.`);
    }
    files.push(blob);
  }
  const text = await detokenizer(files[names.indexOf("model.gguf")]);
  const classifier = new Classifier(description, await start(description, files), text);
  // Compares the prompt's tokens with the pipeline's, and has the browser compile the slow parts for speed.
  await classifier.classify({ width: 256, height: 256, rgb: new Uint8ClampedArray(256 * 256 * 3).fill(128) });
  return classifier;
}

class Classifier {
  constructor(description, wllama, text) {
    this.description = description;
    this.threads = wllama.getNumThreads();
    this._wllama = wllama;
    this._text = text;
    this._root = trie(description.tokens.answers);
    // Tokens of single digits; byte-level vocabularies begin with the control tokens and the bytes
    this._digits = Array.from({ length: 2000 }, (_, token) => token).filter((token) => /^\d$/.test(text([token]) ?? ""));
    if (branching(this._root).some((node) => text(node.path) === null)) {
      throw new Error("Two labels of this task differ within a character, which this page cannot ask llama.cpp about.");
    }
  }

  /**
   * Returns {probabilities, passes, milliseconds}: one probability a label, how many forward passes that took, and how
   * long the answer took from the decoded picture on, resizing included.
   */
  async classify(picture) {
    const began = performance.now();
    const { image, labels, offsets } = this.description;
    const [width, height] = target(picture.width, picture.height, image);
    const file = bmp(resized(picture, [width, height], image.resample));
    const tokens = (width * height) / image.multiple ** 2;
    let passes = 0;
    const ask = (node) => {
      passes++;
      return this._ask(file, tokens, node);
    };
    const probabilities = await posterior(this._root, labels.length, ask, offsets);
    return { probabilities, passes, milliseconds: performance.now() - began };
  }

  /** Map(token -> probability) of the node's children after the picture, the prompt and the node's path. */
  async _ask(file, imageTokens, node) {
    const { prompt, tokens } = this.description;
    const children = [...node.children.keys()];
    const bias = new Map(children.map((token) => [token, BIAS]));
    if (children.some((token) => this._text([token]) === null)) {
      // llama.cpp returns no probabilities if it draws a token that ends within a character: have it draw a digit.
      bias.set(this._digits.find((token) => !bias.has(token)), FURTHER);
    }
    const response = await this._wllama.createChatCompletion({
      messages: [
        { role: "user", content: prompt.before },
        { role: "user", content: [{ type: "image", data: file }] },
        { role: "user", content: prompt.after + this._text(node.path) },
      ],
      max_tokens: 1,
      // A picture's first pass reads picture and prompt, even if it is the last picture again; the others go on there.
      cache_prompt: node !== this._root,
      // A softmax over the children alone
      logit_bias: Object.fromEntries(bias),
      samplers: ["top_k", "temperature"],
      top_k: bias.size,
      temperature: 1,
      logprobs: true,
      top_logprobs: bias.size,
      post_sampling_probs: true,
    });
    const expected = tokens.before + tokens.around_image + imageTokens + tokens.after + node.path.length;
    if (response.usage.prompt_tokens !== expected) {
      throw new Error(`llama.cpp reads ${response.usage.prompt_tokens} tokens where the pipeline reads ${expected}.`);
    }
    const [first] = response.choices[0].logprobs.content;
    const found = new Map(first.top_probs.map(({ id, prob }) => [id, prob]));
    const sum = children.reduce((total, token) => total + (found.get(token) ?? 0), 0);
    return new Map(children.map((token) => [token, (found.get(token) ?? 0) / sum]));
  }
}

async function start({ image, tokens }, files) {
  let wllama;
  try {
    wllama = await import(`./${VENDOR}index.js`);
  } catch {
    throw new Error(`demo/${VENDOR} is missing; \`make demo-files\` fetches it.`);
  }
  const quiet = { debug() {}, log() {}, warn() {}, error() {} };
  const instance = new wllama.Wllama({ default: `${VENDOR}wllama.wasm` }, { suppressNativeLog: true, logger: quiet });
  instance.setCompat(null); // for browsers without JSPI it would load other files from a content network
  const longest = Math.max(...tokens.answers.map((answer) => answer.length));
  const needed = tokens.before + tokens.around_image + image.max_tokens + tokens.after + longest;
  try {
    await instance.loadModel(files, {
      n_ctx: Math.ceil(needed / 256) * 256,
      n_parallel: 1,
      n_gpu_layers: 0, // answers are verified on the CPU; a GPU's differ in more than the last digits
      mmproj_offload: false,
      image_min_tokens: image.min_tokens, // not in the GGUF files; without them, answers are wrong
      image_max_tokens: image.max_tokens,
      chat_template: TEMPLATE,
      jinja: true,
      skip_chat_parsing: true,
    });
  } catch (error) {
    throw new Error(`This browser cannot run the model (${error.message}); Chrome or Edge 137 and later can.`);
  }
  return instance;
}

async function get(address) {
  const response = await fetch(address).catch(() => null);
  if (!response?.ok) throw new Error(`${address} is missing; \`dvc repro export\` writes models/edge.`);
  return response;
}

async function download(address, progress) {
  const parts = [];
  let done = 0;
  for await (const part of (await get(address)).body) {
    parts.push(part);
    progress((done += part.length));
  }
  return new Blob(parts);
}

/** The nodes at which labels part, root first. */
function branching(node) {
  return node.children.size ? [node, ...[...node.children.values()].flatMap(branching)] : [];
}
