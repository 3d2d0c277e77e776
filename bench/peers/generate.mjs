// One text at a time, greedy: alluvium beside llama.cpp (node-llama-cpp, as scripts/fetch-judge installs it) on the same file,
// alternating in one run. Ours is bench_generate, run anew each round; llama.cpp evaluates the same number of tokens.
//   node bench/peers/generate.mjs BASE.gguf [ROUNDS [THREADS]]
import {execFileSync} from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import {fileURLToPath, pathToFileURL} from "node:url";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const [base, rounds = "5", threads = "2"] = process.argv.slice(2);
const PROMPT = 64, TOKENS = 128;
const modules = path.join(root, "build/judge/node_modules");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(path.join(modules, "node-llama-cpp/dist/index.js")));
const version = JSON.parse(fs.readFileSync(path.join(modules, "node-llama-cpp/package.json"))).version;
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: +threads});
const model = await llama.loadModel({modelPath: path.resolve(base)});

function ours() {
    const json = path.join(root, "build/bench-generate.json");
    execFileSync(path.join(root, "build/release/bench/bench_generate"),
        ["--base", base, "--threads", threads, "--prompt", PROMPT, "--tokens", TOKENS, "--rounds", "1", "--json", json]);
    return JSON.parse(fs.readFileSync(json));
}

async function theirs() {
    const context = await model.createContext({contextSize: PROMPT + TOKENS + 8, batchSize: PROMPT, threads: +threads});
    const sequence = context.getSequence();
    const prompt = Array.from({length: PROMPT}, (_, i) => 1000 + i * 37 % 40000);
    const begin = performance.now();
    let first = 0, n = 0;
    for await (const _ of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        if (!n++) first = performance.now();
        if (n === TOKENS) break;
    }
    const end = performance.now();
    await context.dispose();
    return {tokens_per_s: 1000 * (n - 1) / (end - first), prompt_tokens_per_s: 1000 * PROMPT / (first - begin)};
}

const median = (list) => list.sort((a, b) => a - b)[list.length >> 1];
await theirs();
const a = [], b = [];
for (let i = 0; i < +rounds; i++) {
    b.push(await theirs());
    a.push(ours());
}
const pick = (list, key) => median(list.map((x) => x[key]));
for (const key of ["tokens_per_s", "prompt_tokens_per_s"])
    console.log(`${key.padEnd(20)} alluvium ${pick(a, key).toFixed(1)}  llama.cpp (node-llama-cpp ${version}) ` +
        `${pick(b, key).toFixed(1)}  ratio ${(pick(a, key) / pick(b, key)).toFixed(3)}`);
await llama.dispose();
