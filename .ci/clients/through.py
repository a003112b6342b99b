"""A client that produces with acks=all while brokers die and come back, and reads everything back in the end.

through.py confluent|kafka-python BOOTSTRAP TOPIC STOP_FILE

Until the file is there it sends numbered records; then it waits for every answer, reads the topic from its beginning, and holds that
nothing acknowledged is missing. An idempotent producer must not see an error, and its records lie there once, in order.
"""

import logging
import os
import sys
import time

if "PYLOG" in os.environ:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")

PATIENCE = 60
RATE = 300
PARTITIONS = 3


def numbers(stop):
    """Numbers at a steady rate until the file is there."""
    begin, n = time.monotonic(), 0
    while not os.path.exists(stop):
        while n < (time.monotonic() - begin) * RATE:
            yield n
            n += 1
        time.sleep(0.01)


def judge(acked, failed, got, idempotent):
    flat = [n for partition in got.values() for n in partition]
    assert not acked - set(flat), f"{len(acked - set(flat))} of {len(acked)} acknowledged records are lost"
    assert len(acked) > RATE, f"only {len(acked)} were acknowledged"
    if idempotent:
        assert not failed, f"{len(failed)} failed, first: {failed[0]}"
        assert len(flat) == len(set(flat)), f"{len(flat) - len(set(flat))} duplicates"
        for partition, found in got.items():
            assert found == sorted(found), f"partition {partition} is out of order"
    print(f"{len(acked)} acknowledged, {len(failed)} failed, {len(flat)} read back")


def confluent(bootstrap, topic, stop):
    from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

    acked, failed = set(), []
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 5})

    def answered(n):
        return lambda error, _: failed.append(error) if error else acked.add(n)

    for n in numbers(stop):
        producer.produce(topic, str(n), partition=n % PARTITIONS, on_delivery=answered(n))
        producer.poll(0)
    assert producer.flush(PATIENCE) == 0, "not everything was answered"
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, p, 0) for p in range(PARTITIONS)])
    got, ended = {p: [] for p in range(PARTITIONS)}, set()
    while len(ended) < PARTITIONS:
        message = consumer.poll(PATIENCE)
        assert message is not None, f"nothing came for {PATIENCE} s"
        if not message.error():
            got[message.partition()].append(int(message.value()))
        elif message.error().code() == KafkaError._PARTITION_EOF:
            ended.add(message.partition())
        else:
            raise AssertionError(message.error())
    consumer.close()
    judge(acked, failed, got, idempotent=True)


def kafka_python(bootstrap, topic, stop):
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition

    acked, failed = set(), []
    producer = KafkaProducer(bootstrap_servers=bootstrap.split(","), acks="all", linger_ms=5)
    for n in numbers(stop):
        future = producer.send(topic, str(n).encode(), partition=n % PARTITIONS)
        future.add_callback(lambda _, n=n: acked.add(n)).add_errback(failed.append)
    producer.flush(PATIENCE)
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=bootstrap.split(","), group_id=None, consumer_timeout_ms=PATIENCE * 1000)
    partitions = [TopicPartition(topic, p) for p in range(PARTITIONS)]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(partitions)
    got = {p: [] for p in range(PARTITIONS)}
    while any(consumer.position(p) < ends[p] for p in partitions):
        for partition, messages in consumer.poll(1000).items():
            got[partition.partition] += [int(m.value) for m in messages]
    consumer.close()
    judge(acked, failed, got, idempotent=False)


{"confluent": confluent, "kafka-python": kafka_python}[sys.argv[1]](*sys.argv[2:])
