// The texts of a model's tokens, from its GGUF file: wllama takes a prompt as text and cannot turn tokens into text.

const SIZES = { 0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8 }; // bytes of a value, by its type
const STRING = 8;
const ARRAY = 9;
const HEADER_BYTES = 64 * 2 ** 20; // the keys come first; the largest vocabularies take a few MB

/**
 * Returns a function from token ids to their text, or null if the tokens end in the middle of a character. For
 * byte-level BPE, the only kind that the exported models have.
 */
export async function detokenizer(file) {
  const tokens = tokenList(await file.slice(0, HEADER_BYTES).arrayBuffer());
  const table = byteOfCharacter();
  const bytes = (token) => {
    const characters = Array.from(token);
    // Added tokens are written as they are.
    const encoded = characters.every((character) => table.has(character));
    return encoded ? characters.map((character) => table.get(character)) : [...new TextEncoder().encode(token)];
  };
  return (ids) => {
    try {
      const text = Uint8Array.from(ids.flatMap((id) => bytes(tokens[id])));
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(text);
    } catch {
      return null;
    }
  };
}

/** The array tokenizer.ggml.tokens of a GGUF file (version 2 or 3), little-endian. */
function tokenList(buffer) {
  const view = new DataView(buffer);
  const utf8 = new TextDecoder();
  let at = 0;
  const uint32 = () => view.getUint32((at += 4) - 4, true);
  const uint64 = () => Number(view.getBigUint64((at += 8) - 8, true));
  const bytes = () => {
    const length = uint64();
    return new Uint8Array(buffer, (at += length) - length, length);
  };
  const skip = (type, count) => {
    if (type === STRING) for (let i = 0; i < count; i++) bytes();
    else at += SIZES[type] * count;
  };
  at = 16; // after the magic number, the version and the number of tensors
  for (let keys = uint64(); keys > 0; keys--) {
    const key = utf8.decode(bytes());
    const type = uint32();
    if (type !== ARRAY) {
      skip(type, 1);
      continue;
    }
    const [elements, count] = [uint32(), uint64()];
    if (key === "tokenizer.ggml.tokens") return Array.from({ length: count }, () => utf8.decode(bytes()));
    skip(elements, count);
  }
  throw new Error("model.gguf has no tokenizer.");
}

/** Byte-level BPE writes each byte as a printable character (the table of GPT-2's tokenizer): character -> byte. */
function byteOfCharacter() {
  const printable = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  const table = new Map();
  let next = 256; // what is not printable gets the characters from 256 on, in order
  for (let byte = 0; byte < 256; byte++) table.set(String.fromCharCode(printable(byte) ? byte : next++), byte);
  return table;
}
