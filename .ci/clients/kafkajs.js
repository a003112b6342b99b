// kafkajs against a broker: `write` fills it, `verify` reads everything back after a restart.
// usage: node kafkajs.js HOST:PORT write|verify STATE_DIR   (packages: package.json, found by NODE_PATH)
'use strict'

const assert = require('node:assert')
const fs = require('node:fs')
const { Kafka, CompressionTypes, CompressionCodecs, ConfigResourceTypes, logLevel } = require('kafkajs')
const snappy = require('kafkajs-snappy')
const lz4 = require('lz4-napi')
const { ZstdCodec } = require('zstd-codec')

const [bootstrap, phase, state] = process.argv.slice(2)
const LINES = fs.readFileSync(`${state}/lines.txt`, 'latin1').split('\n').slice(0, -1)
const CODECS = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP, snappy: CompressionTypes.Snappy, lz4: CompressionTypes.LZ4, zstd: CompressionTypes.ZSTD }
const BASE_MS = 1_700_000_000_000
const WAIT_MS = 30_000

const kafka = new Kafka({ clientId: 'checks', brokers: [bootstrap], logLevel: logLevel.NOTHING, retry: { retries: 5 } })
const admin = kafka.admin()
let passed = 0
let failed = 0

CompressionCodecs[CompressionTypes.Snappy] = snappy
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: encoder => lz4.compressFrame(encoder.buffer),
  decompress: buffer => lz4.decompressFrame(buffer),
})

async function check(name, body) {
  try {
    await body()
    passed++
    console.log(`ok   kafkajs: ${name}`)
  } catch (e) {
    failed++
    console.log(`FAIL kafkajs: ${name}: ${String(e.message ?? e).slice(0, 400)}`)
    console.error(e)
  }
}

const record = i => ({
  partition: 0,
  key: i % 5 === 0 ? null : `key-${i}`,
  value: LINES[i % LINES.length],
  timestamp: String(BASE_MS + i * 1000),
  headers: i % 3 ? {} : { a: ['1', '2'], name: `value ${i}` },
})

async function create(topic, numPartitions = 1, configEntries = []) {
  assert.equal(await admin.createTopics({ topics: [{ topic, numPartitions, replicationFactor: 1, configEntries }], timeout: WAIT_MS }), true)
}

async function produce(topic, codec) {
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 })
  await producer.connect()
  const half = LINES.length / 2
  for (const start of [0, half]) {
    const messages = Array.from({ length: half }, (_, i) => record(start + i))
    const [answer] = await producer.send({ topic, acks: -1, compression: CODECS[codec], messages })
    assert.equal(answer.errorCode, 0)
    assert.equal(answer.baseOffset, String(start))
  }
  await producer.disconnect()
}

// The first `count` records of partition 0, read through a group of its own.
async function read(topic, count, group, commit = false) {
  const consumer = kafka.consumer({ groupId: group, maxWaitTimeInMs: 500 })
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  const got = []
  let settle
  const complete = new Promise((resolve, reject) => { settle = { resolve, reject } })
  const timer = setTimeout(() => settle.reject(new Error(`${got.length} of ${count} records in ${WAIT_MS} ms`)), WAIT_MS)
  // It starts again by itself after an error that passes, such as a coordinator that is loading.
  consumer.on(consumer.events.CRASH, e => e.payload.restart || settle.reject(e.payload.error))
  await consumer.run({
    autoCommit: false,
    eachMessage: async ({ message }) => {
      if (got.length < count) got.push(message)
      if (got.length === count) settle.resolve()
    },
  })
  try {
    await complete
    if (commit) await consumer.commitOffsets([{ topic, partition: 0, offset: String(Number(got.at(-1).offset) + 1) }])
  } finally {
    clearTimeout(timer)
    await consumer.disconnect()
  }
  return got
}

const flat = message => ({
  key: message.key === null ? null : message.key.toString(),
  value: message.value.toString('latin1'),
  timestamp: message.timestamp,
  headers: Object.fromEntries(Object.entries(message.headers).map(([k, v]) => [k, Array.isArray(v) ? v.map(String) : String(v)])),
})

async function whole(topic) {
  const got = await read(topic, LINES.length, `${topic}-${phase}`)
  got.forEach((message, i) => {
    assert.equal(message.offset, String(i))
    const { partition, ...want } = record(i)
    assert.deepEqual(flat(message), want)
  })
}

async function foreign(topic) {
  if (!(await admin.listTopics()).includes(topic)) return
  const got = await read(topic, LINES.length, `${topic}-kafkajs`)
  assert.deepEqual(got.map(message => message.value.toString('latin1')), LINES)
}

const setting = async (topic, name) => {
  const { resources } = await admin.describeConfigs({
    includeSynonyms: false,
    resources: [{ type: ConfigResourceTypes.TOPIC, name: topic, configNames: [name] }],
  })
  return resources[0].configEntries.find(e => e.configName === name)?.configValue
}

const partitions = async topic => (await admin.fetchTopicMetadata({ topics: [topic] })).topics[0].partitions.length

async function group(from, count) {
  const got = await read('kafkajs-none', count, 'kafkajs-group', true)
  assert.equal(got[0].offset, String(from))
  const [{ partitions: [{ offset }] }] = await admin.fetchOffsets({ groupId: 'kafkajs-group', topics: ['kafkajs-none'] })
  assert.equal(offset, String(from + count))
}

async function offsets() {
  const [{ low, high }] = await admin.fetchTopicOffsets('kafkajs-none')
  assert.deepEqual([low, high], ['0', String(LINES.length)])
  const [{ offset }] = await admin.fetchTopicOffsetsByTimestamp('kafkajs-none', BASE_MS + 100_000)
  assert.equal(offset, '100')
}

async function write() {
  await check('describe cluster', async () => {
    const { brokers, controller, clusterId } = await admin.describeCluster()
    assert.equal(brokers.length, 1)
    assert.equal(controller, brokers[0].nodeId)
    assert.ok(clusterId)
  })
  for (const codec of Object.keys(CODECS)) {
    await check(`create, produce, consume: ${codec}`, async () => {
      await create(`kafkajs-${codec}`)
      await produce(`kafkajs-${codec}`, codec)
      await whole(`kafkajs-${codec}`)
    })
  }
  await check('list offsets: earliest, latest, by time', offsets)
  await check('describe topic settings', async () => {
    await create('kafkajs-config', 1, [{ name: 'retention.ms', value: '3600000' }])
    assert.equal(await setting('kafkajs-config', 'retention.ms'), '3600000')
  })
  await check('create partitions', async () => {
    await create('kafkajs-grow', 2)
    await admin.createPartitions({ topicPartitions: [{ topic: 'kafkajs-grow', count: 5 }] })
    assert.equal(await partitions('kafkajs-grow'), 5)
  })
  await check('delete a topic', async () => {
    await create('kafkajs-deleted')
    await admin.deleteTopics({ topics: ['kafkajs-deleted'], timeout: WAIT_MS })
    assert.ok(!(await admin.listTopics()).includes('kafkajs-deleted'))
  })
  await check('group of one member: consume and commit', () => group(0, 100))
}

async function verify() {
  for (const codec of Object.keys(CODECS)) {
    await check(`the same bytes after a restart: ${codec}`, () => whole(`kafkajs-${codec}`))
  }
  await check('list offsets after a restart', offsets)
  await check('settings after a restart', async () => assert.equal(await setting('kafkajs-config', 'retention.ms'), '3600000'))
  await check('partitions after a restart', async () => assert.equal(await partitions('kafkajs-grow'), 5))
  await check('a deleted topic stays deleted', async () => assert.ok(!(await admin.listTopics()).includes('kafkajs-deleted')))
  await check('group continues at its committed offset', () => group(100, 50))
  for (const codec of Object.keys(CODECS)) await check(`kcat's records: ${codec}`, () => foreign(`kcat-${codec}`))
}

ZstdCodec.run(async zstd => {
  const streams = new zstd.Streaming()
  CompressionCodecs[CompressionTypes.ZSTD] = () => ({
    compress: async encoder => Buffer.from(streams.compress(encoder.buffer)),
    decompress: async buffer => Buffer.from(streams.decompress(buffer)),
  })
  if (!['write', 'verify'].includes(phase)) throw new Error('usage: kafkajs.js HOST:PORT write|verify STATE_DIR')
  await admin.connect()
  await (phase === 'write' ? write() : verify())
  await admin.disconnect()
  process.exit(failed || !passed ? 1 : 0)
})
process.on('unhandledRejection', e => {
  console.log(`FAIL kafkajs: ${String(e.message ?? e).slice(0, 400)}`)
  process.exit(1)
})
