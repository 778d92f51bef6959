"""``make demo``: the main job on real video, on one machine and without a server, ending in a picture."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from rich.console import Console

from pipeline.types import Filter, Ranking
from services.demo_clip import find_clip
from services.lookup import SearchRequest, ranking_table, run_search, write_sheet
from services.settings import Settings

# Words an operator might use; nothing in them is fitted to one clip.
DESCRIPTIONS = (
    "man in a red and dark blue jacket with dark trousers",
    "woman with blonde hair in a long black coat and blue jeans",
    "man in a blue jacket and grey trousers",
)
PURPOSE = "demonstration"
TOP = 5


def run_demo(settings: Settings, video: Path | None, out: Path) -> None:
    """Index every person of a clip, answer some searches, leave ``out``/contact-sheet.jpg."""
    from services import wiring
    from services.footage import ingest_sources

    console = Console(highlight=False)
    started = time.monotonic()
    data = out / "data"
    shutil.rmtree(data, ignore_errors=True)
    settings = settings.model_copy(update={"storage": settings.storage.model_copy(update={"data_folder": data})})
    registry = wiring.weight_registry(settings)
    wiring.fetch_base_weights(settings, console.print)
    clip, source = find_clip(video, settings.storage.cache_folder / "clips", lambda: registry.path("people-photograph"), console.print)
    console.print(f"[bold]clip[/bold] {clip.name} ({source})")

    report = ingest_sources(settings, [str(clip)], show=True)
    console.print(report.text())
    rankings: list[tuple[str, Ranking]] = []
    for words in DESCRIPTIONS:
        ranking = ask(settings, console, SearchRequest(text=words, top_k=TOP, issued_by="demo", purpose=PURPOSE), f"“{words}”")
        rankings.append((f"“{words}”", ranking))
    first = next((ranking.matches[0] for _, ranking in rankings if ranking.matches), None)
    if first is not None:
        request = SearchRequest(tracklet_id=first.tracklet_id, window=Filter(), top_k=TOP, issued_by="demo", purpose=PURPOSE)
        title = "looks like the first match of the first search"
        rankings.append((title, ask(settings, console, request, title)))
    sheet = out / "contact-sheet.jpg"
    write_sheet(settings, sheet, rankings)
    console.print(f"\n[bold green]done[/bold green] in {time.monotonic() - started:.0f} s. Look at [bold]{sheet}[/bold]")
    console.print(f'Go on with:  .venv/bin/sightline --data {data} search "your words" --purpose test --sheet matches.jpg', soft_wrap=True)


def ask(settings: Settings, console: Console, request: SearchRequest, title: str) -> Ranking:
    """Search, show the ranking, give it back."""
    ranking = run_search(settings, request).ranking
    console.print(f"\n[bold]{title}[/bold]")
    print(ranking_table(ranking))
    return ranking
