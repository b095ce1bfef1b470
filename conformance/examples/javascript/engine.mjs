// A llama in one file of JavaScript: reads a GGUF text model (F32, F16, Q8_0), runs a prompt, writes a trace file, for
//
//     llava-ref conform -m TEXT.gguf -p "What is this?" --against "exec:node engine.mjs"
//
// It shows what an engine of one's own adds: `dump` with the name of a stage, and a file in the form safetensors. It
// needs node and no package. Rows of T positions are Float32Arrays, one for each position; sums are float64.

import { readFileSync, writeFileSync } from 'node:fs'

const options = {}
for (let i = 2; i < process.argv.length; i += 2) options[process.argv[i]] = process.argv[i + 1]
const fail = (problem) => { console.error(problem); process.exit(1) }
if (options['--image'] || options['--mmproj']) fail('this engine reads text only: leave out --image, and give -m')

// ---- the file: github.com/ggml-org/ggml/blob/master/docs/gguf.md

function readGguf (path) {
  const bytes = readFileSync(path)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  let at = 0
  const take = (size, get) => { const value = get.call(view, at, true); at += size; return value }
  const u32 = () => take(4, view.getUint32)
  const u64 = () => Number(take(8, view.getBigUint64))
  const string = () => { const size = u64(); at += size; return bytes.toString('utf8', at - size, at) }
  const readers = [
    () => take(1, view.getUint8), () => take(1, view.getInt8),
    () => take(2, view.getUint16), () => take(2, view.getInt16), u32,
    () => take(4, view.getInt32), () => take(4, view.getFloat32), () => take(1, view.getUint8) === 1, string,
    () => { const type = u32(); return Array.from({ length: u64() }, () => readers[type]()) },
    u64, () => Number(take(8, view.getBigInt64)), () => take(8, view.getFloat64)
  ]
  if (bytes.toString('latin1', 0, 4) !== 'GGUF') fail(`${path}: not a GGUF file`)
  at = 8
  const [nTensors, nKeys] = [u64(), u64()]
  const keys = Object.fromEntries(Array.from({ length: nKeys }, () => [string(), readers[u32()]()]))
  const tensors = {}
  for (let i = 0; i < nTensors; i++) {
    const name = string()
    const ne = Array.from({ length: u32() }, u64)
    tensors[name] = { ne, type: u32(), offset: u64() }
  }
  const unit = keys['general.alignment'] ?? 32
  const data = Math.ceil(at / unit) * unit
  return { keys, tensors, row: (name, n) => readRow(view, tensors[name] ?? fail(`${path}: no ${name}`), data, n) }
}

const half = (h) => {
  const [sign, exponent, part] = [h >> 15 ? -1 : 1, (h >> 10) & 31, h & 1023]
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + part / 1024) : 2 ** -24 * part)
}

function readRow (view, { ne, type, offset }, data, n) { // row n of a matrix, or a whole vector
  const width = ne[0]
  const out = new Float32Array(width)
  const first = data + offset
  if (type === 0) for (let i = 0; i < width; i++) out[i] = view.getFloat32(first + 4 * (n * width + i), true)
  else if (type === 1) for (let i = 0; i < width; i++) out[i] = half(view.getUint16(first + 2 * (n * width + i), true))
  else if (type === 8) { // Q8_0: a scale in float16, then 32 numbers of 8 bits
    for (let i = 0; i < width; i++) {
      const block = first + 34 * (n * width / 32 + (i >> 5))
      out[i] = half(view.getUint16(block, true)) * view.getInt8(block + 2 + (i & 31))
    }
  } else fail(`a matrix of ggml type ${type}: this engine knows F32, F16 and Q8_0`)
  return out
}

// ---- the tokenizer: SentencePiece's BPE. Of all neighbours, the pair whose union has the best score is joined

function tokenize (text, keys) {
  const kind = keys['tokenizer.ggml.model']
  if (kind !== 'llama') fail(`a vocabulary of kind ${kind}: this engine knows llama`)
  const [texts, scores, types] = ['tokens', 'scores', 'token_type'].map((name) => keys[`tokenizer.ggml.${name}`])
  const control = texts.find((token, id) => types[id] === 3 && text.includes(token))
  if (control) fail(`${control} in the prompt: this engine knows no control tokens there`)
  const ids = new Map(texts.map((token, id) => [token, id]))
  const pieces = [...` ${text}`.replaceAll(' ', '\u2581')]
  for (;;) {
    let best = -1
    let score = -Infinity
    for (let i = 0; i + 1 < pieces.length; i++) {
      const id = ids.get(pieces[i] + pieces[i + 1])
      if (id !== undefined && scores[id] > score) [best, score] = [i, scores[id]]
    }
    if (best < 0) break
    pieces.splice(best, 2, pieces[best] + pieces[best + 1])
  }
  const byte = (value) => ids.get(`<0x${value.toString(16).toUpperCase().padStart(2, '0')}>`)
  const found = pieces.flatMap((piece) => ids.get(piece) ?? [...Buffer.from(piece)].map(byte))
  return [keys['tokenizer.ggml.bos_token_id'], ...found]
}

// ---- the trace file: github.com/huggingface/safetensors

const trace = {}
function dump (name, rows, shape = [rows.length, rows[0].length]) {
  trace[name] = { shape, dtype: 'F32', bytes: Buffer.concat(rows.map((row) => Buffer.from(row.buffer))) }
  return rows
}

function writeTrace (path, ids, generated) {
  const tokens = Buffer.from(BigInt64Array.from(ids, BigInt).buffer)
  const header = { __metadata__: { generated: JSON.stringify(generated) } }
  const all = { token_ids: { shape: [ids.length], dtype: 'I64', bytes: tokens }, ...trace }
  const parts = []
  let at = 0
  for (const [name, { shape, dtype, bytes }] of Object.entries(all)) {
    header[name] = { dtype, shape, data_offsets: [at, at += bytes.length] }
    parts.push(bytes)
  }
  const text = Buffer.from(JSON.stringify(header))
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(text.length))
  writeFileSync(path, Buffer.concat([size, text, ...parts]))
}

// ---- the network

const file = readGguf(options['-m'])
const key = (name, otherwise) => file.keys[`llama.${name}`] ?? otherwise
const architecture = file.keys['general.architecture']
if (architecture !== 'llama') fail(`architecture ${architecture}: this engine knows llama`)
const nHead = key('attention.head_count')
const nKv = key('attention.head_count_kv', nHead)
const eps = key('attention.layer_norm_rms_epsilon')
const dh = key('rope.dimension_count', key('embedding_length') / nHead)
const base = key('rope.freq_base', 10000)

const add = (x, y) => x.map((row, t) => row.map((value, i) => value + y[t][i]))
const dot = (x, y, n = x.length, from = 0, to = 0) => {
  let sum = 0
  for (let i = 0; i < n; i++) sum += x[from + i] * y[to + i]
  return sum
}
function linear (x, name) {
  const y = x.map(() => new Float32Array(file.tensors[name].ne[1]))
  for (let n = 0; n < y[0].length; n++) {
    const row = file.row(name, n)
    x.forEach((from, t) => { y[t][n] = dot(from, row) })
  }
  return y
}
function norm (x, name) {
  const gain = file.row(name, 0)
  return x.map((row) => {
    const scale = 1 / Math.sqrt(dot(row, row) / row.length + eps)
    return row.map((value, i) => value * scale * gain[i])
  })
}
const rope = (x) => x.map((row, t) => row.map((value, i) => { // neighbours turn together: 0 and 1, 2 and 3, ...
  const angle = t * base ** (-2 * ((i % dh) >> 1) / dh)
  return value * Math.cos(angle) + (i & 1 ? row[i - 1] : -row[i + 1]) * Math.sin(angle)
}))
function attention (q, k, v) {
  return q.map((row, t) => {
    const out = new Float32Array(nHead * dh)
    for (let h = 0; h < nHead; h++) {
      const at = Math.floor(h * nKv / nHead) * dh
      const scores = k.slice(0, t + 1).map((other) => dot(row, other, dh, h * dh, at) / Math.sqrt(dh))
      const most = Math.max(...scores)
      const weights = scores.map((score) => Math.exp(score - most))
      const sum = weights.reduce((a, b) => a + b)
      for (let i = 0; i < dh; i++) {
        out[h * dh + i] = weights.reduce((total, weight, s) => total + weight / sum * v[s][at + i], 0)
      }
    }
    return out
  })
}

function forward (ids, dump) {
  let x = dump('embd', ids.map((id) => file.row('token_embd.weight', id)))
  for (let i = 0; i < key('block_count'); i++) {
    const stage = (name, rows, shape) => dump(`blk.${i}.${name}`, rows, shape)
    const times = (rows, name) => linear(rows, `blk.${i}.${name}.weight`)
    let n = stage('attn_norm', norm(x, `blk.${i}.attn_norm.weight`))
    const [q, k, v] = ['q', 'k', 'v'].map((part) => stage(`${part.toUpperCase()}cur`, times(n, `attn_${part}`)))
    const turnedQ = stage('Qcur_rope', rope(q), [ids.length, nHead, dh])
    const turnedK = stage('Kcur_rope', rope(k), [ids.length, nKv, dh])
    const y = stage('kqv_out', attention(turnedQ, turnedK, v))
    x = stage('ffn_inp', add(x, stage('attn_out', times(y, 'attn_output'))))
    n = stage('ffn_norm', norm(x, `blk.${i}.ffn_norm.weight`))
    const [gate, up] = ['gate', 'up'].map((part) => stage(`ffn_${part}`, times(n, `ffn_${part}`)))
    const silu = (value) => value / (1 + Math.exp(-value))
    const u = stage('ffn_swiglu', gate.map((row, t) => row.map((value, j) => silu(value) * up[t][j])))
    x = stage('out', add(x, stage('ffn_out', times(u, 'ffn_down'))))
  }
  x = dump('result_norm', norm(x, 'output_norm.weight'))
  return dump('result_output', linear(x, file.tensors['output.weight'] ? 'output.weight' : 'token_embd.weight'))
}

const ids = tokenize(readFileSync(options['-f'], 'utf8'), file.keys)
const generated = []
for (let logits = forward(ids, dump).at(-1); generated.length < Number(options['-n'] ?? 0);) {
  generated.push(logits.indexOf(Math.max(...logits)))
  logits = forward([...ids, ...generated], (name, rows) => rows).at(-1)
}
writeTrace(options['-o'], ids, generated)
