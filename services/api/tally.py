"""What the gateway counts, as Prometheus text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Tally:
    """Answers by route and status, the seconds they took, and gauges that are asked when somebody looks. Used in the event loop alone."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Show ``value()`` as ``sightline_api_NAME``."""
        self._gauges[f"sightline_api_{name}"] = (meaning, value)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered; an endless one: its answer began."""
        self._answers[method, route, status] += 1
        self._seconds[method, route] += seconds

    def render(self) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        lines = _head("sightline_api_requests_total", "counter", "Requests by route and status.")
        lines += [
            f'sightline_api_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}'
            for (method, route, status), count in sorted(self._answers.items())
        ]
        lines += _head("sightline_api_request_seconds", "summary", "Seconds until a request was answered.")
        for (method, route), seconds in sorted(self._seconds.items()):
            count = sum(n for (m, r, _), n in self._answers.items() if (m, r) == (method, route))
            lines.append(f'sightline_api_request_seconds_sum{{method="{method}",route="{route}"}} {seconds:.6f}')
            lines.append(f'sightline_api_request_seconds_count{{method="{method}",route="{route}"}} {count}')
        for name, (meaning, value) in self._gauges.items():
            lines += [*_head(name, "gauge", meaning), f"{name} {value():g}"]
        return ("\n".join(lines) + "\n").encode(), CONTENT_TYPE


def _head(name: str, kind: str, meaning: str) -> list[str]:
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
