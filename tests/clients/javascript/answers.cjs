// What a graph answers in Node: reads a question as JSON on stdin, writes the answer as JSON. NODE_PATH has the packages.
//   {graph, output, batches: [{input: {dims, data}}]}      onnxruntime-node alone, on token ids
//   {folder, kind, output, batches: [[[text, pair?]]]}   transformers.js, with its own tokenizer; kind: a class of models
// Answers: for each batch {dims, data} of the output, of the second question with ids, too.

const { basename, dirname } = require('node:path');
const { readFileSync } = require('node:fs');

const plain = ({ dims, data }) => ({ dims, data: Array.from(data, Number) });

async function ofRuntime({ graph, output, batches }) {
  const ort = require('onnxruntime-node');
  const session = await ort.InferenceSession.create(graph, { intraOpNumThreads: 1 });
  const answers = [];
  for (const batch of batches) {
    const feeds = Object.entries(batch).map(([name, { dims, data }]) => [
      name,
      new ort.Tensor('int64', BigInt64Array.from(data, BigInt), dims),
    ]);
    answers.push(plain((await session.run(Object.fromEntries(feeds), [output]))[output]));
  }
  return answers;
}

async function ofTransformers({ folder, kind, output, batches }) {
  const library = require('@huggingface/transformers');
  library.env.allowRemoteModels = false;
  library.env.localModelPath = dirname(folder);
  const tokenizer = await library.AutoTokenizer.from_pretrained(basename(folder));
  const model = await library[kind].from_pretrained(basename(folder));
  const answers = [];
  for (const rows of batches) {
    const pairs = rows[0].length === 2 ? rows.map((row) => row[1]) : undefined;
    const fed = tokenizer(rows.map((row) => row[0]), { text_pair: pairs, padding: true, truncation: true });
    answers.push({ ...plain((await model(fed))[output]), ids: plain(fed.input_ids) });
  }
  return answers;
}

const question = JSON.parse(readFileSync(0, 'utf8'));
(question.graph ? ofRuntime(question) : ofTransformers(question)).then((answers) => console.log(JSON.stringify(answers)));
