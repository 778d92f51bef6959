"""What happens when things break, on a real Kafka with real worker processes:

    python -m tests.faults --runs 20                      every fault, a table at the end
    python -m tests.faults --only kill-index --runs 3     one
    python -m tests.faults --table FILE.jsonl             the table of runs that were noted before

Each run puts work to the line, breaks something in the midst of it, lets it recover and counts: tracklets lost, tracklets twice in the
index, alerts lost. Every run is noted in --out as it ends.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.archive import Footage
from pipeline.errors import BadInputError
from pipeline.types import Camera, Filter, Probe, Query
from services import wire
from services.adapters.faiss_gallery import FaissGallery
from services.adapters.kafka_broker import KafkaBroker
from services.adapters.kafka_client import KafkaConnection
from services.archive import submit_archive
from services.cameras import put_camera
from services.topics import CAMERAS, QUERIES, TRACKLETS, dead_letter_topic
from tests.end_to_end.conftest import pictures_of, write_clip
from tests.faults.cluster import ROOT, START_NS, Cluster, S, spread, within

TRACKLETS_A_RUN = 200
Facts = tuple[int, int, int, int]
LONGEST_S = 120.0


@dataclass
class Outcome:
    """One run. recovery_s: from the end of the fault until everything was there; None: it never was."""

    fault: str
    run: int
    sent: int = 0
    lost: int = 0
    duplicated: int = 0
    alerts_lost: int = 0
    alerts_twice: int = 0
    recovery_s: float | None = None
    note: str = ""


@dataclass
class Sent:
    """What goes out beside a fault, growing: all ids, and those that must alert."""

    ids: set[str]
    hits: set[str]


def is_worked(cluster: Cluster, ids: set[str], hits: set[str]) -> bool:
    return cluster.found(ids) == len(ids) and (not cluster.of("alert") or all(cluster.alerts[each] for each in hits))


def recovered(cluster: Cluster, outcome: Outcome, sent: Sent) -> None:
    """Call at the end of the fault: notes the time until what was sent up to half a second later is in the index and has alerted."""
    started_s = time.monotonic()
    time.sleep(0.5)
    ids, hits = set(sent.ids), set(sent.hits)
    if within(LONGEST_S, lambda: is_worked(cluster, ids, hits)) is not None:
        outcome.recovery_s = time.monotonic() - started_s


def settled(cluster: Cluster, outcome: Outcome, sent: Sent) -> Outcome:
    """Wait until everything is there, then count."""
    outcome.sent = len(sent.ids)
    if within(LONGEST_S, lambda: is_worked(cluster, sent.ids, sent.hits)) is None:
        outcome.recovery_s = None
    outcome.lost = len(sent.ids) - cluster.found(sent.ids)
    outcome.alerts_lost = sum(not cluster.alerts[each] for each in sent.hits)
    outcome.alerts_twice = sum(cluster.alerts[each] > 1 for each in sent.hits)
    held, vectors = cluster.in_index()
    outcome.duplicated = max([held - cluster.published, *(count - cluster.published for count in vectors.values())])
    return outcome


@contextmanager
def publishing(cluster: Cluster, outcome: Outcome, over_s: float = 4.0) -> Iterator[Sent]:
    """Tracklets go out beside the block; all of them are durable after it."""
    sent = Sent(set(), set())
    name = f"{outcome.fault} {outcome.run}"
    thread = threading.Thread(target=lambda: cluster.publish(name, TRACKLETS_A_RUN, over_s, sent.ids, sent.hits))
    thread.start()
    try:
        yield sent
    finally:
        thread.join()


# ------------------------------------------------------------------------------------------- kill -9 of workers


def kill_worker(worker: str) -> Callable[[Cluster, Outcome], Outcome]:
    def fault(cluster: Cluster, outcome: Outcome) -> Outcome:
        with publishing(cluster, outcome) as sent:
            time.sleep(random.uniform(0.3, 3.0))
            random.choice(cluster.of(worker)).kill()
            recovered(cluster, outcome, sent)
        return settled(cluster, outcome, sent)

    return fault


def kill_query(cluster: Cluster, outcome: Outcome) -> Outcome:
    names = [f"{outcome.fault}-{outcome.run}-{number}-{uuid.uuid4().hex[:6]}" for number in range(60)]

    def ask() -> None:
        for name in names:
            _ask(cluster, name)
            time.sleep(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(random.uniform(0.3, 2.5))
    random.choice(cluster.of("query")).kill()
    thread.join()
    outcome.sent = len(names)
    outcome.recovery_s = within(LONGEST_S, lambda: all(cluster.rankings[name] for name in names))
    outcome.lost = sum(not cluster.rankings[name] for name in names)
    outcome.note = f"{sum(cluster.rankings[name] > 1 for name in names)} answered twice"
    return outcome


def _ask(cluster: Cluster, name: str) -> None:
    query = Query(name, (Probe("text", text="man in a dark jacket"),), Filter(), 5, 60.0, "test", "test")
    cluster.produce(QUERIES, wire.encode(query), name.encode())
    cluster.flush()


def told(cluster: Cluster, cameras: list[str], start_ns: int) -> dict[str, list[Facts]]:
    """Camera -> its tracklets in the index: begin and end from the start of the clip, boxes and their sum."""
    found: dict[str, list[Facts]] = {}
    if not (cluster.data / "index").is_dir():
        return found
    with closing(FaissGallery(cluster.data / "index", read_only=True)) as gallery:
        ids = [each.tracklet_id for each in gallery.scan(Filter(cameras=tuple(cameras), from_ns=start_ns, to_ns=start_ns + 3_000 * S))]
        for each in gallery.tracklets(ids):
            boxes = len(each.at_ns) if each.is_closed else -1
            facts = (each.started_at_ns - start_ns, each.ended_at_ns - start_ns, boxes, round(float(each.xyxy.sum())))
            found.setdefault(each.camera_id, []).append(facts)
    return {camera: sorted(facts) for camera, facts in sorted(found.items())}


def clip_of(cluster: Cluster) -> Path:
    path = cluster.folder / "people.mp4"
    if not path.exists():
        write_clip(path, pictures_of(ROOT.parent / "shared" / "data" / "video" / "crossing.mp4", 2.5))
    return path


def disturb_footage(
    cluster: Cluster, outcome: Outcome, put: Callable[[list[Camera]], None], worker: str, is_killed: bool
) -> tuple[dict[str, list[Facts]], float | None]:
    start_ns = START_NS + (outcome.run + 2) * 3_600 * S
    cameras = [Camera(f"{worker}-{number}", str(clip_of(cluster)), starts_at_ns=start_ns) for number in range(4)]
    names = [camera.camera_id for camera in cameras]
    put(cameras)
    if is_killed:
        time.sleep(random.uniform(0.2, 2.5))
        random.choice(cluster.of(worker)).kill()
    wanted = WANTED.get(worker)
    if wanted is None:  # an undisturbed run: until nothing changes any more
        before: list[object] = []
        within(
            60.0, lambda: (before.append(told(cluster, names, start_ns)), len(before) > 60 and before[-1] and before[-1] == before[-60])[1]
        )
        return told(cluster, names, start_ns), 0.0
    waited_s = within(LONGEST_S, lambda: told(cluster, names, start_ns) == wanted)
    return told(cluster, names, start_ns), waited_s


WANTED: dict[str, dict[str, list[Facts]]] = {}


def kill_footage(worker: str) -> Callable[[Cluster, Outcome], Outcome]:
    """Footage through ingest or archive workers; every tracklet of an undisturbed run must be there, and no other."""

    def put(cluster: Cluster) -> Callable[[list[Camera]], None]:
        def cameras(wanted: list[Camera]) -> None:
            for camera in wanted:
                put_camera(cluster.broker, camera)

        def jobs(wanted: list[Camera]) -> None:
            submit_archive(cluster.broker, [Footage(camera, 2.5, str(camera.starts_at_ns)) for camera in wanted])

        return cameras if worker == "ingest" else jobs

    def fault(cluster: Cluster, outcome: Outcome) -> Outcome:
        if worker not in WANTED:
            WANTED[worker], _ = disturb_footage(cluster, Outcome(outcome.fault, -1), put(cluster), worker, is_killed=False)
            assert WANTED[worker], "nobody was found in the undisturbed run"
        wanted = {each for camera, facts in WANTED[worker].items() for each in ((camera, *fact) for fact in facts)}
        found_by_camera, outcome.recovery_s = disturb_footage(cluster, outcome, put(cluster), worker, is_killed=True)
        found = [(camera, *fact) for camera, facts in found_by_camera.items() for fact in facts]
        outcome.sent = len(wanted)
        outcome.lost = len(wanted - set(found))
        outcome.duplicated = len(found) - len(set(found) & wanted)
        if set(found) != wanted:
            outcome.note = f"missing {sorted(wanted - set(found))}, more {sorted(set(found) - wanted)}"
        if worker == "ingest":
            for number in range(4):
                cluster.produce(CAMERAS, None, f"ingest-{number}".encode())
            cluster.flush()
        return outcome

    return fault


# --------------------------------------------------------------------------------------- broker and network


def kill_broker(cluster: Cluster, outcome: Outcome) -> Outcome:
    with publishing(cluster, outcome) as sent:
        time.sleep(random.uniform(0.3, 3.0))
        cluster.kafka.kill()
        cluster.kafka.start()
        recovered(cluster, outcome, sent)
    return settled(cluster, outcome, sent)


def broker_away(cluster: Cluster, outcome: Outcome) -> Outcome:
    with publishing(cluster, outcome) as sent:
        time.sleep(random.uniform(0.3, 2.0))
        cluster.kafka.kill()
        time.sleep(60)
        cluster.kafka.start()
        recovered(cluster, outcome, sent)
    return settled(cluster, outcome, sent)


def network_cut(cluster: Cluster, outcome: Outcome) -> Outcome:
    """Workers cut from Kafka for longer than their session; every second time bytes vanish instead of connections."""
    assert cluster.proxy
    with publishing(cluster, outcome) as sent:
        time.sleep(random.uniform(0.3, 2.0))
        cluster.proxy.set("swallow" if outcome.run % 2 else "refuse")
        time.sleep(10)
        cluster.proxy.set("pass")
        recovered(cluster, outcome, sent)
    return settled(cluster, outcome, sent)


# ---------------------------------------------------------------------------------------------------- the rest


def disk_full(cluster: Cluster, outcome: Outcome) -> Outcome:
    """The index worker's disk, a real one of 96 MB, is full while tracklets come; then somebody frees some."""
    ballast = cluster.data / "ballast"
    with suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(65_536))
            file.flush()
    with publishing(cluster, outcome, 2.0) as sent:
        pass
    time.sleep(2)
    outcome.note = f"{cluster.found(sent.ids)} indexed while full"
    ballast.unlink()
    recovered(cluster, outcome, sent)
    return settled(cluster, outcome, sent)


def rebalance_storm(cluster: Cluster, outcome: Outcome) -> Outcome:
    """Members come to the groups index and alert and go again, some without leaving, for eight seconds."""
    stop = threading.Event()
    joined = [0]

    def trouble(group: str, topics: list[str]) -> None:
        while not stop.is_set():
            with closing(KafkaBroker(KafkaConnection(cluster.kafka.bootstrap, session_timeout_s=2.0))) as broker:
                consumer = broker.consumer(topics, group)
                joined[0] += 1
                for _ in range(random.randint(1, 4)):
                    consumer.poll(0.2)  # what it reads it does not commit
                if random.random() < 0.3:
                    time.sleep(2.5)  # it freezes, and is thrown out

    threads = [
        threading.Thread(target=trouble, args=arguments)
        for arguments in (("index", [TRACKLETS, "coverage", "erasures"]), ("alert", [TRACKLETS])) * 2
    ]
    for thread in threads:
        thread.start()
    with publishing(cluster, outcome, 7.0) as sent:
        pass
    stop.set()
    for thread in threads:
        thread.join()
    recovered(cluster, outcome, sent)
    outcome.note = f"{joined[0]} joined"
    return settled(cluster, outcome, sent)


def poisoned(cluster: Cluster, outcome: Outcome) -> Outcome:
    """A message that is not ours, one of a newer schema and one cut short, and two that are too large."""
    good = wire.encode(cluster.tracklet("poison", 1, False))
    newer = good.replace(b"\xaeschema_version\x01", b"\xaeschema_version\x63")
    assert newer != good
    before = sum(cluster.broker.end_offsets(dead_letter_topic(TRACKLETS)).values())
    with publishing(cluster, outcome, 2.0) as sent:
        for bad in (b"\x00not ours", newer, good[: len(good) // 2]):
            time.sleep(random.uniform(0.05, 0.4))
            cluster.produce(TRACKLETS, bad, b"camera-1")
        refused = 0
        with suppress(BadInputError):
            refused += 1
            cluster.broker.produce(TRACKLETS, bytes(5 * 2**20), b"camera-1")
            refused -= 1
        refused += _foreign_oversized(cluster)
        recovered(cluster, outcome, sent)
    result = settled(cluster, outcome, sent)
    put_aside = lambda: sum(cluster.broker.end_offsets(dead_letter_topic(TRACKLETS)).values()) - before  # noqa: E731
    within(30, lambda: put_aside() >= 6)  # three, by two groups
    outcome.note = f"{put_aside()} dead letters of 3 by two groups, {refused} of 2 oversized refused"
    return result


def _foreign_oversized(cluster: Cluster) -> int:
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    producer = KafkaProducer(bootstrap_servers=cluster.kafka.bootstrap, max_request_size=20 * 2**20)
    try:
        producer.send(TRACKLETS, bytes(5 * 2**20), b"camera-1").get(10)
    except KafkaError:
        return 1
    finally:
        producer.close()
    return 0


def clock_jump(cluster: Cluster, outcome: Outcome) -> Outcome:
    """The workers' clock jumps an hour ahead, and back, while they work."""
    clock = cluster.folder / "clock"
    with publishing(cluster, outcome, 3.0) as sent:
        time.sleep(random.uniform(0.3, 2.0))
        clock.write_text("3600" if outcome.run % 2 == 0 else "-3600")
        recovered(cluster, outcome, sent)
    result = settled(cluster, outcome, sent)
    clock.write_text("0")
    return result


def same_id(cluster: Cluster, outcome: Outcome) -> Outcome:
    """A second index, alert and query worker with the very same settings and data folder; then the first ones are killed."""
    first = {name: cluster.of(name)[0] for name in ("index", "alert")}
    with publishing(cluster, outcome, 6.0) as sent:
        second = cluster.start("index", "alert")
        time.sleep(3)
        log_text = second[0].log_file.read_text()
        for process in first.values():
            process.keeps = False
            process.kill()
        recovered(cluster, outcome, sent)
    result = settled(cluster, outcome, sent)
    outcome.note = log_text.strip().splitlines()[0][:160] if log_text.strip() else "the second index worker said nothing"
    return result


FAULTS: dict[str, Callable[[Cluster, Outcome], Outcome]] = {
    "kill-index": kill_worker("index"),
    "kill-alert": kill_worker("alert"),
    "kill-query": kill_query,
    "kill-ingest": kill_footage("ingest"),
    "kill-archive": kill_footage("archive"),
    "kill-broker": kill_broker,
    "broker-away-60s": broker_away,
    "network-cut": network_cut,
    "disk-full": disk_full,
    "rebalance-storm": rebalance_storm,
    "poisoned": poisoned,
    "clock-jump": clock_jump,
    "same-id": same_id,
}
WORKERS = {
    "kill-query": ("index", "query", "query"),
    "kill-ingest": ("index", "ingest", "ingest"),
    "kill-archive": ("index", "archive", "archive"),
    "same-id": ("index", "alert"),
}
# Python reads this when it starts: the wall clock of a worker, kafka-python's included, plus the seconds that stand in a file.
JUMPING_CLOCK = """
import os, time
true_ns, seen = time.time_ns, [0.0, 0]
def time_ns():
    if time.monotonic() - seen[0] > 0.05:
        with open(os.environ["CLOCK_FILE"]) as file:
            seen[:] = time.monotonic(), int(file.read() or 0) * 1_000_000_000
    return true_ns() + seen[1]
time.time_ns, time.time = time_ns, lambda: time_ns() / 1e9
"""


@contextmanager
def cluster_for(fault: str) -> Iterator[Cluster]:
    """A fresh Kafka and the workers that the fault needs, warm: one round of work went through."""
    with tempfile.TemporaryDirectory(prefix=f"sightline-{fault}-") as name:
        folder, extra, data = Path(name), dict[str, str](), None
        if fault == "clock-jump":
            (folder / "clock").write_text("0")
            (folder / "sitecustomize.py").write_text(JUMPING_CLOCK)
            extra = {"CLOCK_FILE": str(folder / "clock"), "PYTHONPATH": f"{folder}:{ROOT}"}
        if fault == "disk-full":
            data = folder / "small-disk"
            data.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(data)], check=True)
        cluster = Cluster(folder, is_proxied=fault == "network-cut", data=data, extra=extra)
        try:
            cluster.watch()
            cluster.start(*WORKERS.get(fault, ("index", "alert", "alert")))
            warm = Sent(set(), set())
            cluster.publish("warm", 20, 0.0, warm.ids, warm.hits)
            if within(90, lambda: is_worked(cluster, warm.ids, warm.hits)) is None:
                raise RuntimeError(f"the workers did not come up: see {folder}: " + _tails(folder))
            if cluster.of("query"):
                _ask(cluster, "warm")
                within(60, lambda: bool(cluster.rankings["warm"]))
                time.sleep(3)  # the second one too
            yield cluster
        finally:
            cluster.close()
            if fault == "disk-full":
                subprocess.run(["umount", str(data)], check=False)


def _tails(folder: Path) -> str:
    return "\n".join(f"{file.name}: {file.read_text(errors='replace')[-600:]}" for file in sorted(folder.glob("*.log")))


def table(outcomes: list[Outcome]) -> str:
    """As it stands in the runbook."""
    lines = [
        "| fault | runs | sent | lost | twice in the index | alerts lost | raised twice | recovery, median / most, s | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        of = [outcome for outcome in outcomes if outcome.fault == fault]
        if not of:
            continue
        sums = [sum(getattr(o, key) for o in of) for key in ("sent", "lost", "duplicated", "alerts_lost", "alerts_twice")]
        recovered = [o.recovery_s for o in of if o.recovery_s is not None]
        never = len(of) - len(recovered)
        cells = [fault, len(of), *sums, spread(recovered) + (f", {never} never" if never else ""), of[-1].note]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--only", action="append", choices=sorted(FAULTS))
    parser.add_argument("--out", type=Path, default=Path("faults.jsonl"))
    parser.add_argument("--table", type=Path, help="print the table of these runs and end")
    chosen = parser.parse_args()
    if chosen.table:
        print(table([Outcome(**json.loads(line)) for line in chosen.table.read_text().splitlines()]))
        return
    outcomes: list[Outcome] = []
    for fault in chosen.only or FAULTS:
        with cluster_for(fault) as cluster:
            for run in range(chosen.runs):
                outcome = FAULTS[fault](cluster, Outcome(fault, run))
                outcomes.append(outcome)
                with chosen.out.open("a") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
                print(json.dumps(asdict(outcome)), flush=True)
                if outcome.recovery_s is None:
                    print(_tails(cluster.folder), flush=True)
    print(table(outcomes))


if __name__ == "__main__":
    main()
