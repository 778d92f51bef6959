# Search from a program of your own: python ask.py SERVERS WORDS... (pip install confluent-kafka; nothing of Sightline is needed)
import getpass
import json
import sys
import time
from uuid import uuid4

from confluent_kafka import Consumer, Producer, TopicPartition

servers, words, query_id, until_s = sys.argv[1], " ".join(sys.argv[2:]), uuid4().hex, time.monotonic() + 15
asks = {"issued_by": getpass.getuser(), "purpose": "trying deploy/examples/ask.py"}
audit = {"schema_version": 1, "at_ns": time.time_ns(), "action": "search", "subject": query_id, "probes": ["text"], **asks}
query = {"schema_version": 1, "type": "query", "query_id": query_id, "probes": [{"kind": "text", "text": words}], "top_k": 5, **asks}
consumer = Consumer({"bootstrap.servers": servers, "group.id": query_id, "enable.auto.commit": False})
found = [TopicPartition("rankings", number) for number in consumer.list_topics("rankings", 10).topics["rankings"].partitions]
consumer.assign([TopicPartition("rankings", p.partition, consumer.get_watermark_offsets(p, 10)[1]) for p in found])  # before asking
producer = Producer({"bootstrap.servers": servers, "message.timeout.ms": 10_000, "partitioner": "murmur2_random"})  # as Java's client
for topic, message in {"audit": audit, "queries": query}.items():  # who asks and why is durable before anything is looked up
    producer.produce(topic, json.dumps(message), query_id, on_delivery=lambda error, _: error and sys.exit(f"not sent: {error}"))
    producer.flush()
arrivals = (message for message in iter(lambda: consumer.poll(max(0.0, until_s - time.monotonic())), None) if not message.error())
ranking = next((json.loads(m.value()) for m in arrivals if m.key() == query_id.encode()), None) or sys.exit("no answer within 15 s")
rows = ([str(m["rank"]), f"{m['score']:.2f}", m["camera_id"], m["tracklet_id"], "; ".join(m["why"])] for m in ranking["matches"])
sys.stdout.writelines("  ".join(row) + "\n" for row in rows)
sys.exit("; ".join(ranking["coverage"]["notes"]) if ranking["is_partial"] else 0)
