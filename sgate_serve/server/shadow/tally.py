"""What the shadow has found so far, as Prometheus metrics and in words."""

from collections import Counter as Tally
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

from sgate_serve.server.prometheus import FIRST_TOKEN_BUCKETS, NEXT_TOKEN_BUCKETS
from sgate_serve.server.shadow.agreement import FIRST_TOKENS, Agreement, Answer

# What became of a request that belongs to the share: compared; not compared because an answer has
# no token, because it asks for what a comparison would change, because the shadow or the served
# model was busy or too short for it, because its client left, or because the shadow failed.
Outcome = Literal["compared", "no_token", "unsuited", "no_room", "aborted", "failed"]
SERVED, SHADOW = "served", "shadow"
FIRST, EACH = TIMES = ("first", "each")
DISTANCE_BUCKETS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
DIVERGENCE_BUCKETS = (1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass
class Mean:
    """The mean of values that are not kept."""

    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


class ShadowTally:
    """Counts outcomes, agreements and times of one shadow."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._outcomes: Tally[Outcome] = Tally()
        self._first_token, self._divergence = Mean(), Mean()
        self._equal, self._distance = Mean(), Mean()
        self._seconds = {(of, time): Mean() for of in (SERVED, SHADOW) for time in TIMES}
        self._requests = Counter(
            "sgate:shadow_requests",
            "Requests of the shadow's share, by what became of them.",
            ("outcome",),
            registry=self.registry,
        )
        self._first_tokens = Counter(
            "sgate:shadow_first_token",
            "Compared answers, by whether both models find the same first token likeliest.",
            ("agrees",),
            registry=self.registry,
        )
        self._distances = self._histogram(
            "edit_distance", "Edit distance of greedy answers, 0 to 1.", DISTANCE_BUCKETS
        )
        self._divergences = self._histogram(
            "kl_nats",
            f"Mean KL of the shadow to the served model, up to {FIRST_TOKENS} tokens, at least.",
            DIVERGENCE_BUCKETS,
        )
        self._times = {
            FIRST: self._histogram(
                "time_to_first_token_seconds",
                "Request to first token, of compared requests.",
                FIRST_TOKEN_BUCKETS,
                ("model",),
            ),
            EACH: self._histogram(
                "request_time_per_output_token_seconds",
                "Mean time from token to next token, of compared requests.",
                NEXT_TOKEN_BUCKETS,
                ("model",),
            ),
        }

    def count(self, outcome: Outcome) -> None:
        self._outcomes[outcome] += 1
        self._requests.labels(outcome).inc()

    def add(self, served: Answer, shadow: Answer, agreement: Agreement | None) -> None:
        """Add a comparison, which has no agreement where an answer has no token."""
        if agreement is None:
            self.count("no_token")
            return
        self.count("compared")
        self._first_token.add(agreement.first_token)
        self._first_tokens.labels(str(agreement.first_token).lower()).inc()
        self._divergence.add(agreement.divergence)
        self._divergences.observe(agreement.divergence)
        if agreement.distance is not None:
            self._equal.add(agreement.distance == 0)
            self._distance.add(agreement.distance)
            self._distances.observe(agreement.distance)
        for of, answer in ((SERVED, served), (SHADOW, shadow)):
            times = {FIRST: answer.first_token_seconds, EACH: answer.token_seconds}
            for time, seconds in times.items():
                if seconds is not None:
                    self._seconds[of, time].add(seconds)
                    self._times[time].labels(of).observe(seconds)

    def summary(self, name: str) -> str:
        """Return what was found, in a sentence about the shadow `name`."""
        outcomes, compared = self._outcomes, self._outcomes["compared"]
        others = ", ".join(f"{n} {o}" for o, n in outcomes.items() if o != "compared")
        of = f"shadow {name}: {compared} of {outcomes.total()} requests of its share compared"
        of += f" ({others})" if others else ""
        if not compared:
            return of
        parts = [
            f"the first token agrees in {self._first_token.value:.1%}",
            f"KL of the first tokens at least {self._divergence.value:.3g} nats",
        ]
        if self._equal.count:
            parts.append(
                f"of {self._equal.count} greedy answers {self._equal.value:.1%} are equal, mean "
                f"edit distance {self._distance.value:.3g}"
            )
        for time, words in ((FIRST, "time to first token"), (EACH, "time per further token")):
            served, shadow = (self._seconds[of, time] for of in (SERVED, SHADOW))
            if served.count and shadow.count:
                parts.append(f"{words} {served.value:.3g} s, shadow {shadow.value:.3g} s")
        return f"{of}: {'; '.join(parts)}"

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(
            f"sgate:shadow_{name}", text, labels, registry=self.registry, buckets=buckets
        )
