// Mean loss of a text in llama.cpp (node-llama-cpp), under a base and under each of some adapters.
//   node judge.mjs NODE_MODULES BASE.gguf TEXT [ADAPTER.gguf ...]
// First line: the text's token ids, special tokens not parsed. Then one line for the bare base and one for each adapter: the
// mean negative log-likelihood in nats of tokens 1 .. n-1. No BOS; K and V cache in f32.
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [modules, base, text, ...adapters] = process.argv.slice(2);
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(path.resolve(modules, "node-llama-cpp/dist/index.js")));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 2});
const model = await llama.loadModel({modelPath: path.resolve(base)});
const ids = model.tokenize(fs.readFileSync(text, "utf8"), false);
console.log(JSON.stringify(ids));

// From all logits in double: the library's own total is a sum in float.
function loss(logits, target) {
    const own = logits.get(target);
    let sum = 0;
    for (const v of logits.values()) sum += Math.exp(v - own);
    return Math.log(sum);
}

for (const adapter of [null, ...adapters]) {
    const context = await model.createContext({
        contextSize: ids.length + 8, batchSize: ids.length + 8, threads: 2, flashAttention: false,
        experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
        lora: adapter ? {adapters: [{filePath: path.resolve(adapter), scale: 1}]} : undefined
    });
    let sum = 0;
    const last = ids.length - 1;
    const input = ids.map((id, i) => i === last ? id : [id, {generateNext: {logits: true}}]);
    await context.getSequence().controlledEvaluate(input, {
        onTokenResult(i, result) {
            sum += loss(result.next.logits, ids[i + 1]);
            result.next.logits = null;
        }
    });
    console.log(sum / last);
    await context.dispose();
}
await llama.dispose();
