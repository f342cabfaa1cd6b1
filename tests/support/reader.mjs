// A reader of nodes, written from docs/format.md alone: node reader.mjs GRAPH ITEM KIND [VARIANT] prints the node's bytes.
import { existsSync, openSync, readFileSync, readSync, readdirSync } from 'node:fs'
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from 'hyparquet'
import { compressors } from 'hyparquet-compressors'
import { xxhash128 } from 'hash-wasm'

const [graph, item, kind, variant = '0'] = process.argv.slice(2)
const json = (name) => JSON.parse(readFileSync(`${graph}/${name}`, 'utf8'))

const { format, features, source } = json('graph.json')
if (format !== 1 || features.length) throw new Error(`format ${format} with ${features}: this reader knows format 1`)

// The newest document of a folder whose names are numbers, and the newest revision of a unit.
const heads = readdirSync(`${graph}/heads`).sort()
const { annotator, version } = json(`heads/${heads.at(-1)}`)[kind]
const newest = (folder, shard) => readdirSync(folder).filter((name) => name.startsWith(`shard-${shard}-r`)).sort().at(-1)

async function footer(name) {
  const metadata = await parquetMetadataAsync(await asyncBufferFromFile(name))
  return JSON.parse(metadata.key_value_metadata.find(({ key }) => key === 'graphbuild').value)
}

async function shardOf(itemIx) {
  const ingested = `${graph}/edges/annotator=source:${source.name}`
  for (const folder of readdirSync(ingested)) {
    for (const name of readdirSync(`${ingested}/${folder}`)) {
      const { index, start, stop } = (await footer(`${ingested}/${folder}/${name}`)).unit.shard
      if (start <= itemIx && itemIx < stop) return String(index).padStart(5, '0')
    }
  }
  throw new Error(`there is no item ${itemIx}`)
}

const unit = `${graph}/edges/annotator=${annotator}/version=${version}`
const name = newest(unit, await shardOf(Number(item)))
if (!name) throw new Error(`${kind} of this shard is not committed`)
const edges = await parquetReadObjects({ file: await asyncBufferFromFile(`${unit}/${name}`), compressors })
const edge = edges.find((row) => `${row.item_ix} ${row.kind} ${row.variant}` === `${item} ${kind} ${variant}`)
if (edge?.status !== 'ok') throw new Error(`not stored: ${edge?.reason ?? 'it was never planned'}`)
if (!existsSync(`${graph}/${edge.part}`)) throw new Error(`${edge.part} is missing`)

const bytes = Buffer.alloc(Number(edge.nbytes))
readSync(openSync(`${graph}/${edge.part}`), bytes, 0, bytes.length, Number(edge.offset))
if ((await xxhash128(bytes)) !== edge.content_hash) throw new Error(`${edge.part}: damaged at ${edge.offset}`)
process.stdout.write(bytes)
