// As through.py, with kafkajs: node through.js BOOTSTRAP TOPIC STOP_FILE
'use strict'

const assert = require('node:assert')
const fs = require('node:fs')
const { Kafka, logLevel } = require('kafkajs')

const [bootstrap, topic, stop] = process.argv.slice(2)
const PATIENCE_MS = 60_000
const PARTITIONS = 3
const PER_ROUND = 4
const ROUND_MS = 20

const kafka = new Kafka({ clientId: topic, brokers: bootstrap.split(','), logLevel: logLevel.NOTHING, retry: { retries: 30, maxRetryTime: 1000 } })

async function main() {
  const producer = kafka.producer()
  await producer.connect()
  const acked = new Set()
  const failed = []
  let n = 0
  while (!fs.existsSync(stop)) {
    // One partition per call: a call that is repeated may leave out partitions whose leader has changed, and succeeds all the same.
    const partition = n % PARTITIONS
    const numbers = Array.from({ length: PER_ROUND }, () => n++)
    const messages = numbers.map(n => ({ partition, value: String(n) }))
    await producer.send({ topic, acks: -1, messages }).then(() => numbers.forEach(n => acked.add(n)), e => failed.push(e.message))
    await new Promise(resolve => setTimeout(resolve, ROUND_MS))
  }
  await producer.disconnect()
  const admin = kafka.admin()
  await admin.connect()
  const offsets = await admin.fetchTopicOffsets(topic)
  await admin.disconnect()
  const ends = new Map(offsets.map(({ partition, high }) => [partition, Number(high)]))
  const got = new Map() // By place: a consumer may be given a record again when the group moves.
  const consumer = kafka.consumer({ groupId: topic })
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  await new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error(`${got.size} records came back in ${PATIENCE_MS} ms`)), PATIENCE_MS).unref()
    const eachMessage = async ({ partition, message }) => {
      got.set(`${partition}:${message.offset}`, Number(message.value))
      if (Number(message.offset) + 1 >= ends.get(partition)) ends.delete(partition)
      if (ends.size === 0) resolve()
    }
    consumer.run({ eachMessage })
  })
  await consumer.disconnect()
  const found = new Set(got.values())
  const lost = [...acked].filter(n => !found.has(n))
  assert.equal(lost.length, 0, `${lost.length} of ${acked.size} acknowledged records are lost: ${lost.slice(0, 12)}`)
  assert.ok(acked.size > 300, `only ${acked.size} were acknowledged; ${failed.length} failed: ${failed[0]}`)
  console.log(`${acked.size} acknowledged, ${failed.length} requests failed, ${got.size} read back`)
}

main().then(() => process.exit(0), e => { console.error(e.message); process.exit(1) })
