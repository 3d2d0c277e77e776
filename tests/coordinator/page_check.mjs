// Draws the page (coordinator/page/view.js) from what a coordinator says, given as JSON on standard input, and fails when it reads a
// field that is not there, or shows what no person should see.
//   node page_check.mjs VIEW_JS <STATE_JSON
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const { view, measures, problems } = await import(pathToFileURL(process.argv[2]));
const bad = new Set();

// Data whose missing fields are mistakes. Lists and their methods are as ever.
function strict(value, path) {
  if (value === null || typeof value !== 'object') return value;
  if (Array.isArray(value)) return value.map((v, i) => strict(v, `${path}[${i}]`));
  return new Proxy(value, { get(object, name) {
    if (typeof name === 'symbol') return object[name];
    if (!Object.hasOwn(object, name)) bad.add(`${path.replace(/\[\d+\]/g, '[]')}.${name} is read, and there is no such field`);
    return strict(object[name], `${path}.${name}`);
  } });
}

const text = node => (typeof node === 'object' ? node.children.map(text).join(' ') : String(node));

function check(node, ids) {
  if (typeof node !== 'object') {
    if (typeof node === 'number') bad.add(`it shows the bare number ${node}`); // mostly a condition that was meant as yes or no
    if (/undefined|NaN|\[object|Infinity|\bnull\b|\bfalse\b/.test(String(node))) bad.add(`it shows "${node}"`);
    return;
  }
  if (!/^[a-z0-9]+$/.test(node.tag)) bad.add(`no element is called "${node.tag}"`);
  for (const [name, value] of Object.entries(node.attributes)) {
    if (/^on|^style$|^href$|^src$/.test(name)) bad.add(`attribute ${name}, which the policy forbids`);
    if (/undefined|NaN|\[object/.test(String(value))) bad.add(`${node.tag} has ${name}="${value}"`);
  }
  if (node.attributes.role === 'gridcell' && !node.attributes['aria-label']) bad.add('a cell of the heat map has no words');
  if (node.tag === 'progress' && !node.attributes['aria-label']) bad.add('a progress bar has no name');
  node.children.forEach(child => check(child, ids));
}

const input = JSON.parse(readFileSync(0, 'utf8'));
let cells = 0;
for (const measure of Object.keys(measures)) {
  const given = strict(input, 'state');
  const state = { status: given.status, versions: given.versions, verdicts: given.verdicts, held: given.held, now_s: input.now_s, error: null, mistake: null, measure, chosen: null };
  const parts = view(state);
  for (const part of ['problems', 'title', 'tiles', 'heat', 'domains', 'replay', 'workers', 'subscribers', 'verdicts', 'versions'])
    if (!parts[part] || !parts[part].length) bad.add(`nothing is drawn in ${part}`);
  for (const nodes of Object.values(parts)) nodes.forEach(node => check(node));
  const grid = JSON.stringify(parts.heat).match(/"gridcell"/g) || [];
  const zero = JSON.stringify(parts.heat).match(/"tabindex":"0"/g) || [];
  cells += grid.length;
  if (grid.length && zero.length !== 1) bad.add(`${zero.length} cells of the heat map are reached by Tab, not one`);
  if (input.expect) for (const words of input.expect) if (!Object.values(parts).flat().some(n => text(n).includes(words))) bad.add(`"${words}" is not on the page`);
}
view({ status: null, versions: null, verdicts: null, held: null, now_s: 0, error: null, mistake: null, measure: 'learnt', chosen: null }); // before the first answer
const early = view({ status: strict(input.status, 'state.status'), versions: null, verdicts: null, held: null, now_s: input.now_s, error: 'xyzzy', mistake: 'plugh', measure: 'learnt', chosen: null });
for (const word of ['xyzzy', 'plugh']) if (!early.problems.some(n => text(n).includes(word))) bad.add(`the error ${word} is not shown`);
console.log([...bad].join('\n') || `${cells} cells, ${problems({ status: input.status, held: input.held, error: null, mistake: null }).length} problems`);
process.exit(bad.size ? 1 : 0);
