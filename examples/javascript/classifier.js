// A classifier from a folder that `axformer-onnx deploy --for transformersjs` wrote, in Node and in browsers alike.

/**
 * @param {object} library what '@huggingface/transformers' exports
 * @param {string} name the model's folder below env.localModelPath
 * @param {{dtype?: string}} options dtype: 'fp32', 'q8' or 'fp16' where there are several; left out, config.json says
 * @returns {Promise<(texts: string[], pairs?: string[]) => Promise<object[]>>} answers for a batch of texts: for each of them
 *   scores, a list of {label, score} with the best first (one column: its number), and tokens, how many it has
 */
export async function loadClassifier({ AutoTokenizer, AutoModelForSequenceClassification }, name, options = {}) {
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const model = await AutoModelForSequenceClassification.from_pretrained(name, options);
  const { id2label, problem_type } = model.config;

  return async (texts, pairs = undefined) => {
    const batch = tokenizer(texts, { text_pair: pairs, padding: true, truncation: true });
    const { logits } = await model(batch);
    const tokens = batch.attention_mask.tolist().map((row) => row.reduce((sum, one) => sum + Number(one), 0));
    return logits.tolist().map((row, i) => ({ tokens: tokens[i], scores: ranked(scores(row, problem_type), id2label) }));
  };
}

function scores(logits, problem) {
  if (problem === 'multi_label_classification') return logits.map((one) => 1 / (1 + Math.exp(-one)));
  if (logits.length === 1) return logits; // a regression
  const largest = Math.max(...logits);
  const powers = logits.map((one) => Math.exp(one - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((one) => one / sum);
}

function ranked(values, id2label) {
  return values.map((score, i) => ({ label: id2label?.[i] ?? `LABEL_${i}`, score })).sort((a, b) => b.score - a.score);
}
