// node classify.js FOLDER [--dtype q8] < TEXTS: one text a line, two with a tab between; prints label, score and the line.

import { basename, dirname, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';

import * as transformers from '@huggingface/transformers';
import { loadClassifier } from './classifier.js';

const BATCH = 8;
const { values, positionals } = parseArgs({ options: { dtype: { type: 'string' } }, allowPositionals: true });
if (positionals.length !== 1) {
  console.error('usage: node classify.js FOLDER [--dtype fp32|q8|fp16] < TEXTS');
  process.exit(2);
}
const folder = resolve(positionals[0]);
transformers.env.allowRemoteModels = false;
transformers.env.localModelPath = dirname(folder);
const classify = await loadClassifier(transformers, basename(folder), values).catch((error) => {
  console.error(`${folder}: ${error.message}`);
  process.exit(1);
});

let waiting = [];
for await (const line of createInterface({ input: process.stdin })) {
  if (line) waiting.push(line);
  if (waiting.length === BATCH) await answer();
}
if (waiting.length) await answer();

async function answer() {
  const rows = waiting.map((line) => line.split('\t'));
  const paired = rows.every((row) => row.length === 2);
  const answers = await classify(rows.map((row) => row[0]), paired ? rows.map((row) => row[1]) : undefined);
  answers.forEach(({ scores: [best] }, i) => console.log(`${best.label}\t${best.score.toFixed(4)}\t${waiting[i]}`));
  waiting = [];
}
