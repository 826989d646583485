// The page: loads ./model, classifies what is typed. ?dtype=q8 chooses among several precisions.

import * as transformers from './node_modules/@huggingface/transformers/dist/transformers.min.js';
import { loadClassifier } from './classifier.js';

const { env } = transformers;
env.allowRemoteModels = false;
env.allowLocalModels = true; // off in browsers unless asked for
env.localModelPath = './';
env.useBrowserCache = false; // the browser's own cache asks whether a file has changed; transformers.js's would not
env.useWasmCache = false;
const runtime = new URL('./node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded', import.meta.url).href;
env.backends.onnx.wasm.wasmPaths = { mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm` }; // else from a content network

const [form, status, answer, button] = ['form', '#status', '#answer', 'button'].map((one) => document.querySelector(one));
const dtype = new URLSearchParams(location.search).get('dtype') ?? undefined;
let classify;

try {
  const started = performance.now();
  const { ok } = await fetch('model/config.json');
  if (!ok) throw new Error("there is no model/config.json; 'axformer-onnx deploy RUN model --for transformersjs' writes it");
  classify = await loadClassifier(transformers, 'model', { device: 'wasm', dtype });
  await classify(['The first call takes longer.']);
  status.textContent = `Loaded in ${((performance.now() - started) / 1000).toFixed(1)} s. What you type stays in this browser.`;
  button.disabled = false;
} catch (error) {
  fail(`The model was not loaded: ${error.message}.`);
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  if (button.disabled) return;
  button.disabled = true;
  const { text, pair } = form.elements;
  try {
    const started = performance.now();
    const [{ scores, tokens }] = await classify([text.value], pair.value ? [pair.value] : undefined);
    show(scores);
    status.className = '';
    status.textContent = `${tokens} tokens in ${(performance.now() - started).toFixed(1)} ms`;
  } catch (error) {
    fail(`No answer: ${error.message}.`);
  }
  button.disabled = false;
});

form.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

function show(scores) {
  const title = document.createElement('h2');
  title.textContent = scores[0].label;
  const rows = scores.map(({ label, score }, i) => {
    const row = document.createElement('div');
    row.className = i === 0 ? 'row best' : 'row';
    const [name, bar, share] = ['span', 'meter', 'span'].map((tag) => document.createElement(tag));
    name.textContent = label;
    bar.value = score;
    bar.ariaLabel = label;
    share.className = 'share';
    share.textContent = scores.length === 1 ? score.toFixed(3) : `${(100 * score).toFixed(2)} %`;
    row.append(name, scores.length === 1 ? '' : bar, share); // the number of a regression has no bar
    return row;
  });
  answer.replaceChildren(title, ...rows);
}

function fail(line) {
  status.className = 'error';
  status.textContent = line;
  answer.replaceChildren();
}
