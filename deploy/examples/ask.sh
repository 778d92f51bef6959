#!/bin/sh
# Search from a shell: ask.sh SERVERS WORDS... (needs kcat and jq; nothing of Sightline)
set -eu
servers=$1; shift
id=$(cat /proc/sys/kernel/random/uuid) now=$(date +%s) user=$(id -un)
send() { kcat -P -b "$servers" -t "$1" -k "$id" -X partitioner=murmur2_random; } # a key lies where Kafka's Java client puts it
# Who asks and why is durable before anything is looked up.
jq -nc --arg id "$id" --arg user "$user" --argjson at "$now" '{schema_version: 1, at_ns: ($at * 1000000000), action: "search",
  subject: $id, probes: ["text"], issued_by: $user, purpose: "trying deploy/examples/ask.sh"}' | send audit
jq -nc --arg id "$id" --arg user "$user" --arg words "$*" '{schema_version: 1, type: "query", query_id: $id, top_k: 5,
  probes: [{kind: "text", text: $words}], issued_by: $user, purpose: "trying deploy/examples/ask.sh"}' | send queries
# Rankings since a minute before the question (clocks differ), until ours is among them.
for _ in $(seq 30); do
  answer=$(kcat -C -q -e -b "$servers" -t rankings -o "s@$(((now - 60) * 1000))" -f '%k %s\n' | sed -n "s/^$id //p" | head -n 1)
  [ -z "$answer" ] || break
  sleep 0.5
done
[ -n "$answer" ] || { echo "no answer" >&2; exit 1; }
printf '%s\n' "$answer" | jq -r '(.matches[] | [.rank, .score, .camera_id, .tracklet_id, (.why | join("; "))] | @tsv),
  (select(.is_partial) | .coverage.notes | join("; ") + "\n" | halt_error)'
